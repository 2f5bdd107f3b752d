"""A job's journal: what stays for those who come later, and what those who follow are told."""

from __future__ import annotations

import asyncio
import threading

from ideoflow.serving.journal import Journal


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


def test_who_follows_is_told_every_event_however_fast_they_come():
    journal = Journal()

    async def follow():
        events = journal.follow()
        journal.tell("queued", {})
        first = await anext(events)
        thread = threading.Thread(target=told, args=(journal, 100))
        thread.start()
        thread.join()  # all of them, before the loop has a turn
        return [first, *[event async for event in events]]

    events = asyncio.run(follow())
    assert [event.type for event in events] == ["queued", *["step"] * 100, "finished"]
    assert [event.number for event in events] == list(range(1, 103))


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
