"""Plans and fleets on paper: what several GPUs take of a step, failures of replicas, and how many GPUs do."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ideoflow.simulate import (
    IDEOGRAM_4,
    MACHINES,
    Cost,
    Failures,
    Job,
    Machine,
    Plan,
    PlannedCost,
    fewest_replicas,
    poisson,
    rate_of_load,
    simulate,
)

COST = Cost(a=0.002, b=3e-5, c=6e-10, start=0.02, finish=2e-5)
NVLINK = MACHINES["nvlink"]
FREE = Machine(bandwidth=1e30, latency=0.0, memory=1e30)  # sends in no time
GUIDED = (7.0,) * 8
SMALL = Job(200, 1024, GUIDED, kind="small")
LARGE = Job(500, 4096, (7.0,) * 6 + (1.0,) * 2, kind="large")
KINDS = [(3.0, SMALL), (1.0, LARGE)]
REQUESTS = st.lists(
    st.tuples(st.integers(1, 600), st.integers(1, 5000)).map(lambda pair: (sum(pair), pair[1])), min_size=1, max_size=6
)


def cost_of(plan: str, machine: Machine = NVLINK, **changes: Any) -> PlannedCost:
    return PlannedCost(replace(COST, **changes), Plan.of(plan), machine=machine)


@given(REQUESTS)
@settings(max_examples=20, deadline=None)
def test_one_gpu_takes_what_the_cost_says(requests: list[tuple[int, int]]):
    assert COST.of(requests) == COST.step([n for pair in requests for n in pair])
    assert cost_of("one").of(requests) == pytest.approx(COST.of(requests))


@given(
    REQUESTS, st.sampled_from(["context=2", "context=3", "context=18", "tensor=2", "tensor=9", "context=3,tensor=3"])
)
@settings(max_examples=20, deadline=None)
def test_where_sending_is_free_the_work_is_divided_and_what_a_step_takes_anyway_is_not(requests, plan: str):
    cost = cost_of(plan, FREE)
    assert cost.of(requests) - COST.a == pytest.approx((COST.of(requests) - COST.a) / cost.plan.gpus)


@given(REQUESTS)
@settings(max_examples=20, deadline=None)
def test_guidance_takes_as_long_as_the_longer_branch(requests):
    conditional = [pair[0] for pair in requests]
    assert cost_of("guidance=2", FREE).of(requests) == pytest.approx(COST.step(conditional))
    assert cost_of("guidance=2", FREE).of([(n,) for n in conditional]) == pytest.approx(COST.step(conditional))


def test_data_takes_as_long_as_the_fullest_group():
    requests = [(400, 300)] * 4 + [(4000, 3900)]
    assert cost_of("data=2", FREE).of(requests) == pytest.approx(COST.of([(4000, 3900)]))
    assert cost_of("data=5", FREE).of([(400, 300)]) == pytest.approx(COST.of([(400, 300)]))
    assert cost_of("data=2", FREE).of([(400, 300)] * 4) == pytest.approx(COST.of([(400, 300)] * 2))


def test_bytes_that_are_sent_are_counted():
    """Of a stream of 3600 tokens of 4608 channels of two bytes, in 34 blocks."""
    stream, layers = 3600 * 4608 * 2, IDEOGRAM_4.layers
    slow = Machine(bandwidth=1e9, latency=0.5, memory=1e30)
    requests = [(3600,)]
    computed = COST.step([3600]) - COST.a

    def sent(plan: str) -> float:
        cost = cost_of(plan, slow)
        return cost.of(requests) - COST.a - computed / (cost.plan.context * cost.plan.tensor)

    # Queries, keys, values and the output, of a third of the tokens, two thirds of it to others.
    assert sent("context=3") == pytest.approx(layers * 4 * (0.5 + stream / 3 * 2 / 3 / 1e9))
    # 18 heads are not shared by 4: keys and values of all tokens to each, three quarters of which it lacks.
    assert sent("context=4") == pytest.approx(layers * 2 * (0.5 + stream * 3 / 4 / 1e9))
    # Two sums, each in parts that are summed and then gathered.
    assert sent("tensor=3") == pytest.approx(layers * 2 * 2 * (0.5 + stream * 2 / 3 / 1e9))
    both = layers * (4 * (0.5 + stream / 3 / 3 * 2 / 3 / 1e9) + 2 * 2 * (0.5 + stream / 3 * 2 / 3 / 1e9))
    assert sent("context=3,tensor=3") == pytest.approx(both)
    guided = cost_of("guidance=2", slow).of([(3600, 3000)])
    assert guided - COST.step([3600]) == pytest.approx(0.5 + 3000 * 128 * 4 / 1e9)


def test_norms_and_sums_of_the_stream_are_divided_among_nobody_under_tensor_parallel():
    slow_memory = replace(FREE, memory=1e12)
    assert cost_of("tensor=2", slow_memory).of([(4000,)]) > cost_of("tensor=2", FREE).of([(4000,)])
    assert cost_of("context=2", slow_memory).of([(4000,)]) == cost_of("context=2", FREE).of([(4000,)])
    assert cost_of("tensor=2", replace(FREE, memory=1.0)).of([(4000,)]) == pytest.approx(COST.step([4000]))


@pytest.mark.parametrize("text", ["", "two", "guidance", "guidance=3", "context=0", "context=2,context=2", "context=x",
                                  "pipeline=2", "context=-1", "tensor=2 context=2", "context=99999"])  # fmt: skip
def test_what_is_no_plan_is_refused(text: str):
    with pytest.raises(ValueError, match=r"is no plan: give each of|give a whole number"):
        Plan.of(text)


@given(st.builds(Plan, st.integers(1, 2), st.integers(1, 18), st.integers(1, 18), st.integers(1, 8)))
def test_a_plan_reads_as_it_is_written(plan: Plan):
    assert Plan.of(str(plan)) == plan and plan.gpus == plan.guidance * plan.context * plan.tensor * plan.data


def test_a_plan_has_the_names_of_the_engines_own():
    from ideoflow.distributed.parallel_config import ParallelConfig

    assert vars(Plan()) == vars(ParallelConfig())


def test_heads_are_shared_in_whole_numbers_by_tensor_parallel():
    with pytest.raises(ValueError, match="18 heads are shared in whole numbers: give one of 1, 2, 3, 6, 9, 18"):
        cost_of("tensor=4")
    assert cost_of("context=4").of([(100,)]) > 0


# Fleets


def test_a_fleet_of_planned_replicas_plays_the_steps_of_its_plan():
    cost = cost_of("guidance=2,context=3")
    report = simulate([replace(LARGE, arrival=5.0)], cost)
    alone = sum(cost.of([LARGE.segments_of(step)]) for step in range(8)) + COST.start + COST.finish * 4096
    assert report.jobs[0].latency == pytest.approx(alone)


def test_jobs_go_to_the_device_with_the_fewest_tokens_before_it():
    """Each of three comes while the ones before it are at work, and has a device to itself."""
    jobs = [replace(LARGE, arrival=0.001 * i) for i in range(3)]
    latencies = [job.latency for job in simulate(jobs, COST, devices=3).jobs]
    assert latencies == pytest.approx([latencies[0]] * 3)
    assert simulate(jobs, COST, devices=2).percentile(1) > 1.3 * latencies[0]


def test_what_a_device_has_done_is_before_it_no_more():
    jobs = [replace(LARGE, arrival=0.0), replace(SMALL, arrival=500.0), replace(SMALL, arrival=500.001)]
    _, one, other = simulate(jobs, COST, devices=2).jobs
    assert one.latency == pytest.approx(other.latency)


def test_a_replica_that_fails_loses_its_steps_and_no_job():
    traffic = poisson(KINDS, rate_of_load(KINDS, COST, 0.6, 4), 300)
    quiet = simulate(traffic, COST, devices=4)
    report = simulate(traffic, COST, devices=4, failures=Failures(every=20.0, repair=5.0))
    assert report.failures > 5 and report.restarted > 0 and quiet.failures == quiet.restarted == 0
    assert len(report.jobs) == 300 and all(job.finished is not None and job.step == 8 for job in report.jobs)
    least = {job.kind: job.latency for job in simulate([SMALL, replace(LARGE, arrival=1e3)], COST).jobs}
    assert all(job.latency >= least[job.kind] * 0.999 for job in report.jobs)
    assert report.percentile(0.95) > quiet.percentile(0.95) and 0 < report.busy <= 1
    assert simulate(traffic, COST, devices=4, failures=Failures(20.0, 5.0)).percentile(0.95) == report.percentile(0.95)
    assert simulate(traffic, COST, devices=4, failures=Failures(1e12, 5.0)).percentile(0.5) == quiet.percentile(0.5)


def test_jobs_wait_while_every_replica_is_away():
    report = simulate([replace(SMALL, arrival=float(i)) for i in range(20)], COST, failures=Failures(2.0, 30.0))
    assert report.failures > 0 and report.percentile(1) > 25


def test_failures_that_let_nothing_through_are_told():
    with pytest.raises(ValueError, match=r"`failures` come every 0\.001 s: no job is done in between"):
        simulate([SMALL], COST, failures=Failures(0.001, 0.0))
    for every, repair in ((0.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (1.0, -1.0)):
        with pytest.raises(ValueError, match="give a finite number"):
            Failures(every, repair)


def test_the_fewest_replicas_do_and_one_fewer_does_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ideoflow.simulate.sizing.FEWEST", 300)
    cost = cost_of("guidance=2")
    rate = rate_of_load(KINDS, cost, 0.9, 6)
    bound = 1.25 * max(simulate([job], cost).percentile(1) for _, job in KINDS)
    found = fewest_replicas(KINDS, rate, cost, seconds=bound)
    assert found.replicas is not None and found.gpus == 2 * found.replicas and found.report is not None
    assert found.report.percentile(0.95) <= bound
    traffic = poisson(KINDS, rate, max(300, 20 * (found.replicas - 1)))
    assert simulate(traffic, cost, devices=found.replicas - 1).percentile(0.95) > bound
    assert fewest_replicas(KINDS, rate, cost, seconds=bound, most_gpus=found.gpus).replicas == found.replicas
    assert fewest_replicas(KINDS, rate, cost, seconds=bound, most_gpus=found.gpus - 1).replicas is None
    assert fewest_replicas(KINDS, rate, cost, seconds=min(found.alone) / 2).replicas is None
    with_failures = fewest_replicas(KINDS, rate, cost, seconds=bound, failures=Failures(30.0, 10.0))
    assert with_failures.replicas is None or with_failures.replicas > found.replicas
