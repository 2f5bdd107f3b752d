"""Which replica draws what, how many there should be, and which goes next."""

from dataclasses import dataclass

import pytest

from ideoflow.serving.fleet.routing import DEPTH, IDLE, QUEUED, choose, next_change, pause, wanted

INK = (("ink", 1.0),)
GOLD = (("gold", 0.5),)


@dataclass(eq=False)
class One:
    outstanding: int = 0
    in_pass: int = 0
    adapters: tuple | None = None
    state: str = "ready"
    generation: int = 0
    pass_tokens: int = 1000


def test_the_fewest_tokens_come_first_not_the_fewest_pictures():
    large, small = One(outstanding=4000, in_pass=400), One(outstanding=3000, in_pass=900)
    assert choose([large, small], ()) is small


def test_a_replica_that_draws_with_the_same_adapters_is_preferred_by_one_pass():
    same, other = One(outstanding=1900, adapters=INK), One(outstanding=1000, adapters=GOLD)
    assert choose([same, other], INK) is same
    same.outstanding = 2100
    assert choose([same, other], INK) is other


def test_a_replica_that_has_drawn_nothing_yet_has_nothing_to_change():
    assert choose([One(outstanding=500, adapters=INK), fresh := One()], INK) is fresh


@pytest.mark.parametrize("state", ["starting", "leaving"])
def test_only_those_that_are_ready_are_sent_anything(state):
    assert choose([One(state=state)], ()) is None
    assert choose([One(state=state), ready := One(outstanding=9, in_pass=9)], ()) is ready


def test_nobody_is_sent_more_than_two_passes():
    assert choose([One(in_pass=DEPTH * 1000)], ()) is None
    assert choose([One(in_pass=DEPTH * 1000 - 1)], ()) is not None


def test_one_that_is_missing_is_started():
    assert next_change([One()], target=2, generation=0, room=None) == "start"
    assert next_change([One(), One(state="starting")], target=2, generation=0, room=None) is None
    assert next_change([One(), One(state="leaving")], target=2, generation=0, room=None) == "start"


def test_of_too_many_the_oldest_generation_goes_and_of_that_the_one_with_least_to_do():
    busy, idle, new = One(outstanding=9), One(outstanding=2), One(generation=1)
    assert next_change([busy, idle, new], target=2, generation=1, room=None) is idle
    assert next_change([busy, idle], target=1, generation=0, room=None) is idle


def test_replicas_are_rolled_over_one_by_one():
    old, older = One(outstanding=5), One(outstanding=3)
    assert next_change([old, older], 2, 1, None) == "look for room"
    assert next_change([old, older], 2, 1, True) == "start"
    assert next_change([old, older], 2, 1, False) is older
    starting = One(state="starting", generation=1)
    assert next_change([old, older, starting], 2, 1, True) is None
    starting.state = "ready"
    assert next_change([old, older, starting], 2, 1, None) is older
    older.state = "leaving"
    assert next_change([old, older, starting], 2, 1, None) is None
    assert next_change([old, starting], 2, 1, None) == "look for room"
    assert next_change([One(generation=1), starting], 2, 1, None) is None


def test_a_successor_that_does_not_start_leaves_the_old_ones_where_they_are():
    assert next_change([One(), One()], target=2, generation=1, room=None) == "look for room"
    assert next_change([One()], target=2, generation=1, room=None) == "start"


@pytest.mark.parametrize(
    ("target", "queue_seconds", "idle_seconds", "then"),
    [
        (2, QUEUED + 1, 0, 3),
        (2, QUEUED - 1, 0, 2),
        (4, QUEUED + 1, 0, 4),
        (2, None, 0, 2),
        (2, 0.0, IDLE + 1, 1),
        (1, 0.0, IDLE + 1, 1),
    ],
)
def test_the_number_follows_the_seconds_that_wait(target, queue_seconds, idle_seconds, then):
    assert wanted(target, 1, 4, queue_seconds, idle_seconds) == then


def test_after_failures_the_next_try_comes_later_and_later():
    assert [pause(count) for count in (0, 1, 2, 5, 50)] == [0, 2, 4, 32, 60]
