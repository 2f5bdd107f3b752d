"""A job's journal: what stays for those who come later, and what those who follow are told."""

from __future__ import annotations

import asyncio
import threading

from ideoflow.serving.journal import SLACK, Journal


def told(journal, steps):
    for step in range(steps):
        journal.tell("step", {"step": step}, key="step 0")
    journal.tell("finished", {})


def test_who_comes_later_is_told_the_latest_of_each_key_and_the_end():
    journal = Journal()
    journal.tell("queued", {})
    told(journal, 5)

    async def follow():
        return [(event.number, event.type, event.data) async for event in journal.follow()]

    assert asyncio.run(follow()) == [(1, "queued", {}), (6, "step", {"step": 4}), (7, "finished", {})]


def follow_late(steps):
    """What a reader is told of so many steps that all come before it has a turn."""
    journal = Journal()

    async def follow():
        events = journal.follow()
        journal.tell("queued", {})
        first = await anext(events)
        thread = threading.Thread(target=told, args=(journal, steps))
        thread.start()
        thread.join()
        return [first, *[event async for event in events]]

    return asyncio.run(follow())


def test_who_follows_is_told_every_event():
    events = follow_late(SLACK - 2)
    assert [event.type for event in events] == ["queued", *["step"] * (SLACK - 2), "finished"]
    assert [event.number for event in events] == list(range(1, SLACK + 1))


def test_a_slow_reader_is_told_the_latest_steps_and_no_more_than_some_tens_wait_for_it():
    events = follow_late(10_000)
    assert len(events) <= SLACK + 2
    assert [event.type for event in (events[0], events[-1])] == ["queued", "finished"]
    assert events[-2].data == {"step": 9_999}
    assert [event.number for event in events] == sorted({event.number for event in events})


def test_events_that_are_known_are_not_told_again():
    journal = Journal()
    told(journal, 3)

    async def follow():
        return [event.number async for event in journal.follow(3)]

    assert asyncio.run(follow()) == [4]


def test_a_quiet_journal_gives_none_now_and_then():
    journal = Journal()
    journal.tell("queued", {})

    async def follow():
        events = journal.follow(1, pause=0.01)
        assert await anext(events) is None
        journal.tell("finished", {})
        return [event.type async for event in events if event is not None]

    assert asyncio.run(follow()) == ["finished"]
