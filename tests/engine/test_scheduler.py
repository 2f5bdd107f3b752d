"""The scheduler: budgets, the three orders, and that no job starves, is lost or runs twice in a step."""

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ideoflow.engine.scheduler import AGEING, CREDIT, POLICIES, Scheduler


@dataclass(eq=False)
class Piece:
    """A job of a trace: so many steps of so many tokens each."""

    tokens: int
    steps: int
    arrival: int = 0
    priority: int = 0
    cancelled_at: int | None = None
    taken: int = 0
    finished_at: int | None = None
    key: float = field(default=0.0, repr=False)


pieces = st.builds(
    Piece,
    tokens=st.integers(1, 400),
    steps=st.integers(1, 6),
    arrival=st.integers(0, 12),
    priority=st.integers(-2, 2),
    cancelled_at=st.one_of(st.none(), st.none(), st.integers(0, 15)),
)
traces = st.tuples(
    st.lists(pieces, min_size=1, max_size=14),
    st.sampled_from(POLICIES),
    st.one_of(st.none(), st.integers(1, 600)),
    st.one_of(st.none(), st.integers(1, 5)),
)


def play(jobs, policy, max_tokens, max_requests):
    """Run a trace to its end, checking every step."""
    scheduler = Scheduler(max_tokens, max_requests, policy)
    now, owed = 0, 0.0
    while len(scheduler) or any(job.arrival >= now for job in jobs):
        for job in jobs:
            if job.arrival == now:
                scheduler.add(job)
                job.key = {"fair": owed, "fifo": 0.0, "priority": now / AGEING - job.priority}[policy]
            if job.cancelled_at is not None and now >= job.cancelled_at and job in scheduler:
                scheduler.remove(job)
        chosen = scheduler.pick()
        assert bool(chosen) == bool(len(scheduler)), "a step is never idle while a job waits"
        assert max(Counter(map(id, chosen)).values(), default=1) == 1, "no job twice in a step"
        if len(chosen) > 1:
            assert max_tokens is None or sum(job.tokens for job in chosen) <= max_tokens
        assert max_requests is None or len(chosen) <= max_requests
        owed += CREDIT * sum(job.tokens for job in chosen) / max(1, len(scheduler))
        scheduler.ran(chosen, [job.tokens for job in chosen])
        for job in chosen:
            job.taken += 1
            assert job.taken <= job.steps
            if job.taken == job.steps:
                job.finished_at = now
                scheduler.remove(job)
        now += 1


def check_trace(trace):
    jobs, policy, max_tokens, max_requests = trace
    play(jobs, policy, max_tokens, max_requests)
    for place, job in enumerate(jobs):
        if job.cancelled_at is not None:
            assert job.taken <= job.steps
            continue
        assert job.taken == job.steps, "no job is lost"
        # Whoever runs first while this one waits has a lower key than its last one: so few can pass it.
        if policy == "fifo":
            ahead = [o for i, o in enumerate(jobs) if (o.arrival, i) < (job.arrival, place)]
        else:
            last = job.key + (job.tokens * (job.steps - 1) if policy == "fair" else 0)
            ahead = [o for o in jobs if o is not job and o.key <= last]
        waited = job.finished_at - job.arrival + 1
        assert waited <= job.steps + sum(other.steps for other in ahead), "no job starves"


@given(traces)
@settings(max_examples=1_000, deadline=None)
def test_no_job_of_random_traces_starves_is_lost_or_doubled(trace):
    check_trace(trace)


@pytest.mark.long
@given(traces)
@settings(max_examples=10_000, deadline=None)
def test_no_job_of_ten_thousand_random_traces_starves_is_lost_or_doubled(trace):
    check_trace(trace)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_large_job_ends_under_endless_small_ones(policy):
    """Two small jobs come at every step, more than a step can hold: without a bound the large one would never run."""
    scheduler = Scheduler(max_tokens=100, policy=policy)
    large = Piece(tokens=100, steps=5, priority=-1)
    scheduler.add(large)
    for _ in range(100_000):
        for _ in range(2):
            scheduler.add(Piece(tokens=60, steps=1))
        chosen = scheduler.pick()
        scheduler.ran(chosen, [job.tokens for job in chosen])
        for job in chosen:
            job.taken += 1
            if job.taken == job.steps:
                scheduler.remove(job)
        if large.taken == large.steps:
            return
        if len(scheduler) > 500:  # forget the newest, to keep the test quick: they cannot be first
            for job in scheduler.jobs[-300:]:
                scheduler.remove(job)
    raise AssertionError("the large job never ended")


def run_until_first_ends(scheduler, jobs):
    """The job that ends first."""
    while True:
        chosen = scheduler.pick()
        scheduler.ran(chosen, [job.tokens for job in chosen])
        for job in chosen:
            job.taken += 1
            if job.taken == job.steps:
                return job


@pytest.mark.parametrize(("policy", "first"), [("fair", "small"), ("fifo", "large"), ("priority", "large")])
def test_who_ends_first_when_a_small_job_comes_after_a_large_one(policy, first):
    scheduler = Scheduler(max_tokens=1000, policy=policy)
    jobs = {"large": Piece(tokens=1000, steps=48, priority=1), "small": Piece(tokens=100, steps=12)}
    scheduler.add(jobs["large"])
    chosen = scheduler.pick()
    scheduler.ran(chosen, [1000])
    jobs["large"].taken = 1
    scheduler.add(jobs["small"])

    assert run_until_first_ends(scheduler, jobs) is jobs[first]


def test_fair_shares_equal_jobs_equally():
    scheduler = Scheduler(max_requests=1)
    jobs = [Piece(tokens=10, steps=100) for _ in range(4)]
    for job in jobs:
        scheduler.add(job)
    for _ in range(40):
        chosen = scheduler.pick()
        scheduler.ran(chosen, [10])
        chosen[0].taken += 1

    assert [job.taken for job in jobs] == [10] * 4


def test_fifo_is_overtaken_by_none_and_fair_fills_the_room():
    sizes = (60, 60, 30)
    picks = {}
    for policy in ("fifo", "fair"):
        scheduler = Scheduler(max_tokens=100, policy=policy)
        jobs = [Piece(tokens=tokens, steps=1) for tokens in sizes]
        for job in jobs:
            scheduler.add(job)
        picks[policy] = [jobs.index(job) for job in scheduler.pick()]

    assert picks == {"fifo": [0], "fair": [0, 2]}


def test_age_makes_up_for_priority():
    scheduler = Scheduler(max_requests=1, policy="priority")
    old = Piece(tokens=1, steps=1, priority=0)
    scheduler.add(old)
    for _ in range(2 * AGEING + 1):
        scheduler.ran([], [])
    young = Piece(tokens=1, steps=1, priority=2)
    scheduler.add(young)

    assert scheduler.pick() == [old]


def test_a_job_larger_than_the_budget_runs_alone():
    scheduler = Scheduler(max_tokens=10)
    large, small = Piece(tokens=50, steps=1), Piece(tokens=2, steps=1)
    scheduler.add(large)
    scheduler.add(small)

    assert scheduler.pick() == [large]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_tokens": 0}, "`max_tokens` is 0"),
        ({"max_requests": -1}, "`max_requests` is -1"),
        ({"policy": "lifo"}, "`policy` is 'lifo': choose one of fair, fifo, priority"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Scheduler(**arguments)


def test_a_job_cannot_wait_twice():
    scheduler, job = Scheduler(), Piece(tokens=1, steps=1)
    scheduler.add(job)
    with pytest.raises(ValueError, match="added already"):
        scheduler.add(job)
