"""The simulator: against arithmetic that can be done by hand, queueing theory, and the scheduler's promises."""

import math
import random
import statistics
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ideoflow.engine import Denoiser
from ideoflow.simulate import Cost, Job, fit_cost, measure, poisson, rate_of_load, simulate, simulate_batches
from ideoflow.simulate.pace import Pace, variation

SMALL = Job(20, 30, (7.0,) * 4, kind="small")
LARGE = Job(50, 400, (7.0,) * 12, kind="large")
COST = Cost(a=0.01, b=1e-4, c=1e-7)


def test_a_job_alone_takes_the_sum_of_its_steps():
    job = Job(20, 30, (7.0, 7.0, 1.0), arrival=5.0)
    cost = Cost(a=1.0, b=0.1, c=0.01, start=2.0, finish=0.5)
    guided = 1 + 0.1 * (50 + 30) + 0.01 * (50**2 + 30**2)
    plain = 1 + 0.1 * 50 + 0.01 * 50**2

    report = simulate([job], cost)

    assert report.jobs[0].latency == pytest.approx(2 + 2 * guided + plain + 0.5 * 30)
    assert report.busy == pytest.approx(1.0) and job.step == 0  # the traffic is left as it was


def test_jobs_that_fit_share_their_steps():
    together = simulate([SMALL, SMALL], COST)
    alone = simulate([SMALL, SMALL], COST, max_requests=1)

    segments = SMALL.segments * 2
    assert together.seconds == pytest.approx(4 * COST.step(segments))
    assert alone.seconds == pytest.approx(8 * COST.step(SMALL.segments))


def test_first_in_first_out_with_one_job_at_a_time_waits_as_queueing_theory_says():
    """Mean wait of an M/D/1 queue: load * service / (2 * (1 - load))."""
    kinds = [(1.0, SMALL)]
    rate = rate_of_load(kinds, COST, 0.8)
    service = 0.8 / rate
    report = simulate(poisson(kinds, rate, 40_000, seed=3), COST, policy="fifo", max_requests=1)
    wait = sum(job.latency for job in report.jobs) / len(report.jobs) - service

    assert report.busy == pytest.approx(0.8, rel=0.03)
    assert wait == pytest.approx(0.8 * service / (2 * 0.2), rel=0.1)


def test_fair_spares_small_jobs_the_wait_for_large_ones():
    kinds = [(4.0, SMALL), (1.0, LARGE)]
    traffic = poisson(kinds, rate_of_load(kinds, COST, 0.8), 3000, seed=1)
    fair, fifo = (simulate(traffic, COST, policy=policy, max_tokens=900) for policy in ("fair", "fifo"))

    assert fair.percentile(0.95, "small") <= 0.3 * fifo.percentile(0.95, "small")
    assert fair.throughput >= 0.97 * fifo.throughput


def test_more_devices_share_the_work():
    kinds = [(1.0, SMALL), (1.0, LARGE)]
    traffic = poisson(kinds, 1000.0, 400, seed=2)  # all at once
    one, four = (simulate(traffic, COST, devices=devices, max_requests=1) for devices in (1, 4))

    assert four.seconds == pytest.approx(one.seconds / 4, rel=0.1)


def test_batches_of_equal_size_pad_captions_and_wait_for_each_other():
    short, long = Job(10, 30, (7.0,) * 4), Job(40, 30, (7.0,) * 4)
    report = simulate_batches([short, long, LARGE], COST, batch=4)

    first = 4 * COST.step((70, 30) * 2)
    assert report.jobs[0].latency == pytest.approx(first)
    assert report.jobs[1].latency == pytest.approx(first)
    assert report.jobs[2].latency == pytest.approx(first + 12 * COST.step(LARGE.segments))
    padded, real = 4 * 200 + 12 * LARGE.tokens, 4 * 170 + 12 * LARGE.tokens
    assert report.waste == pytest.approx(1 - real / padded)


def test_batches_take_no_job_before_it_has_come():
    early, late = Job(10, 30, (7.0,)), Job(10, 30, (7.0,), arrival=100.0)
    report = simulate_batches([late, early], COST, batch=2)

    assert [job.latency for job in report.jobs] == pytest.approx([COST.step((40, 30))] * 2)


def test_fit_finds_the_cost_that_made_the_steps():
    draw = random.Random(0)
    true = Cost(a=0.004, b=3e-5, c=2e-8)
    steps = []
    for _ in range(40):
        segments = [draw.randint(20, 2000) for _ in range(draw.randint(1, 8))]
        steps.append((segments, true.step(segments) * draw.uniform(0.99, 1.01)))
    found = fit_cost(steps)

    assert found.a == pytest.approx(true.a, rel=0.05)
    assert found.b == pytest.approx(true.b, rel=0.05)
    assert found.c == pytest.approx(true.c, rel=0.1)


def test_fit_keeps_the_total_of_noisy_steps():
    """Some steps take twice as long, as on a shared machine: the model is right on average."""
    draw = random.Random(0)
    true = Cost(a=0.004, b=3e-5)
    steps = [([n], true.step([n]) * draw.choice((1.0, 1.0, 2.0))) for n in range(100, 2000, 3)]
    found = fit_cost(steps)

    assert sum(found.step(n) for n, _ in steps) == pytest.approx(sum(value for _, value in steps), rel=0.02)


def test_fit_gives_no_negative_cost():
    found = fit_cost([([n], 1.0 - 1e-4 * n) for n in range(100, 1000, 100)])

    assert min(found.a, found.b, found.c) >= 0
    with pytest.raises(ValueError, match="`steps` holds 2"):
        fit_cost([([1], 1.0), ([2], 2.0)])


def test_traffic_is_poisson_and_reproducible():
    kinds = [(3.0, SMALL), (1.0, LARGE)]
    traffic = poisson(kinds, 10.0, 20_000, seed=4)

    assert [job.arrival for job in traffic[:9]] == [job.arrival for job in poisson(kinds, 10.0, 9, seed=4)]
    assert traffic[-1].arrival == pytest.approx(2000, rel=0.05)
    assert sum(job.kind == "small" for job in traffic) == pytest.approx(15_000, rel=0.05)


def test_percentiles_and_the_report():
    report = simulate([Job(1, 1, (1.0,), arrival=i) for i in range(100)], Cost(0.1, 0.0))

    assert report.percentile(0.5) == pytest.approx(0.1) and not math.isnan(report.percentile(0.99))
    assert "pictures/s" in str(report) and "p95" in str(report)
    with pytest.raises(ValueError, match="no job of the kind 'x'"):
        report.percentile(0.5, "x")
    with pytest.raises(ValueError, match="`jobs` is empty"):
        simulate([], COST)


def test_fit_corrects_the_three_numbers_where_many_steps_say_so():
    """Rows of a product are computed by the dozen: steps of some sizes take longer than a straight line has it."""
    draw = random.Random(0)

    def true(n):
        return 0.01 + 1e-4 * n * (1.3 if n > 300 else 1.0)

    sizes = [n for n in (100, 200, 299, 310, 400, 600) for _ in range(50)]
    cost = fit_cost([([n], true(n) * draw.uniform(0.95, 1.05)) for n in sizes])

    for n in set(sizes):
        assert cost.step([n]) == pytest.approx(true(n), rel=0.02)
    plain = replace(cost, factors=())
    assert max(abs(plain.step([n]) / true(n) - 1) for n in set(sizes)) > 0.04
    assert cost.step([10]) > 0 and cost.step([5000]) == pytest.approx(cost.factors[-1][1] * plain.step([5000]))


def test_measured_steps_are_those_of_the_pipeline(monkeypatch):
    """A pipeline whose steps take a known time gives that time back."""
    from ideoflow import sketch

    pipe, clock = sketch.load(), [0.0]
    true = Cost(0.5, 0.01, 1e-4)
    plain = Denoiser.compute

    def compute(self, requests):
        lengths = [request.text_tokens + request.image_tokens for request in requests]
        lengths += [request.image_tokens for request in requests if request.guided]
        clock[0] += true.step(lengths)
        return plain(self, requests)

    monkeypatch.setattr(Denoiser, "compute", compute)
    monkeypatch.setattr("ideoflow.simulate.timing.time.perf_counter", lambda: clock[0])
    kinds = [(5.0, Job(20, 36, (2.0,) * 3)), (1.0, Job(30, 64, (2.0, 1.0)))]
    seen = []
    cost = measure(pipe, kinds, max_tokens=300, progress=lambda done, total: seen.append((done, total)))

    assert [cost.a, cost.b, cost.c] == pytest.approx([true.a, true.b, true.c], rel=1e-6)
    assert seen[-1][0] == seen[-1][1] and [done for done, _ in seen] == sorted(done for done, _ in seen)


SECONDS = st.floats(1e-3, 10.0)
ROUNDING = 1e-9  # of the difference of two times of the clock
PAIRS = st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=60)
MEASURED = PAIRS.map(lambda pairs: variation(*zip(*pairs, strict=True)))


def slow_moments(count: int = 6000) -> list[float]:
    """Factors of a machine that is twice as slow for sixty steps in three hundred, and pauses now and then."""
    draw = random.Random(5)
    return [
        (1.8 if i % 300 < 60 else 0.9) * draw.uniform(0.95, 1.05) * (4.0 if i % 97 == 0 else 1.0) for i in range(count)
    ]


def correlation(values: list[float], lag: int) -> float:
    return statistics.correlation(values[:-lag], values[lag:])


@given(MEASURED, st.lists(SECONDS, min_size=1, max_size=8), st.integers(0, 9))
@settings(deadline=None)
def test_a_pace_is_a_clock(measured, parts, seed):
    """It never stands still or runs backward, and what is taken in parts is what is taken at once."""
    slowest = max(seconds / model for model, seconds in measured)
    fastest = min(seconds / model for model, seconds in measured)
    pace = Pace(measured, seed)
    taken = [pace.take(part) for part in parts]

    for part, seconds in zip(parts, taken, strict=True):
        assert fastest * part - ROUNDING <= seconds <= slowest * part + ROUNDING
    assert sum(taken) == pytest.approx(Pace(measured, seed).take(sum(parts)), abs=len(parts) * ROUNDING)


@given(MEASURED)
@settings(deadline=None)
def test_what_was_measured_varies_about_its_own_mean(measured):
    modelled, seconds = (sum(column) for column in zip(*measured, strict=True))

    assert seconds == pytest.approx(modelled)


@pytest.mark.parametrize("step", [0.003, 0.02, 4.0])
def test_on_average_as_many_seconds_pass_as_are_modelled(step: float):
    measured = variation([step] * 6000, [step * factor for factor in slow_moments()])
    pace = Pace(measured, seed=1)

    assert sum(pace.take(step) for _ in range(150_000)) == pytest.approx(150_000 * step, rel=0.03)


@pytest.mark.parametrize("step", [0.003, 0.02, 4.0])
def test_slow_moments_last_and_weigh_as_long_as_measured(step: float):
    """Of twelve steps together: that is what a request waits for."""
    factors = slow_moments()
    mean = statistics.fmean(factors)
    pace = Pace(variation([step] * 6000, [step * factor for factor in factors]), seed=2)
    drawn = [pace.take(step) / step * mean for _ in range(60_000)]
    own, other = (
        [statistics.fmean(values[i : i + 12]) for i in range(0, len(values), 12)] for values in (factors, drawn)
    )

    for share in (0.05, 0.5, 0.95, 0.99):
        expected, found = (sorted(values)[int(share * len(values))] for values in (own, other))
        assert found == pytest.approx(expected, rel=0.1)
    assert correlation(other, 1) == pytest.approx(correlation(own, 1), abs=0.2) and correlation(own, 1) > 0.5


def test_a_pause_is_as_long_in_a_large_step_as_in_the_small_one_it_was_measured_in():
    steps = [0.01] * 1000
    paused = [0.01 + 0.5 * (i % 200 == 0) for i in range(1000)]
    pace = Pace(variation(steps, paused), seed=0)
    scale = sum(steps) / sum(paused)
    taken = [pace.take(0.1) / scale for _ in range(1000)]

    assert max(taken) == pytest.approx(0.1 + 0.5, rel=1e-3)


def test_fit_keeps_what_the_steps_are_off_by_in_their_order():
    factors = slow_moments(900)
    sizes = [100 + 50 * (i % 7) for i in range(900)]
    cost = fit_cost([([n], (0.01 + 1e-4 * n) * factor) for n, factor in zip(sizes, factors, strict=True)])
    ratios = [seconds / model for model, seconds in cost.variation]

    assert [model for model, _ in cost.variation] == pytest.approx([cost.step([n]) for n in sizes])
    assert statistics.correlation(ratios, factors) > 0.98
    assert "variation" not in repr(cost)


def test_traffic_on_a_machine_with_slow_moments_is_reproduced_by_its_seed_and_waits_longer():
    kinds = [(5.0, SMALL), (1.0, LARGE)]
    modelled = [COST.step(SMALL.segments)] * 6000
    varied = replace(COST, variation=variation(modelled, [0.03 * factor for factor in slow_moments()]))
    traffic = poisson(kinds, rate_of_load(kinds, COST, 0.7), 1500, seed=1)
    plain, first, again, other = (
        simulate(traffic, cost, devices=2, max_tokens=900, seed=seed)
        for cost, seed in ((COST, 0), (varied, 0), (varied, 0), (varied, 1))
    )

    def latencies(report):
        return [job.latency for job in report.jobs]

    assert latencies(first) == latencies(again) and latencies(first) != latencies(other)
    assert latencies(plain) == latencies(simulate(traffic, COST, devices=2, max_tokens=900, seed=1))
    assert first.busy == pytest.approx(plain.busy, rel=0.05) and first.throughput == pytest.approx(
        plain.throughput, 0.02
    )
    assert first.percentile(0.99, "small") > 1.15 * plain.percentile(0.99, "small")


def test_batches_of_equal_size_have_slow_moments_too():
    traffic = poisson([(1.0, SMALL)], 10.0, 300)
    varied = replace(COST, variation=variation([0.01] * 6000, [0.01 * factor for factor in slow_moments()]))
    plain, first, again, other = (
        [job.latency for job in simulate_batches(traffic, cost, batch=4, seed=seed).jobs]
        for cost, seed in ((COST, 0), (varied, 0), (varied, 0), (varied, 1))
    )

    assert first == again and len({tuple(plain), tuple(first), tuple(other)}) == 3


NAN, INF = float("nan"), float("inf")


def refused(name: str, error: type[Exception], call, *args, **kwargs) -> None:
    """One clear error that names the argument."""
    with pytest.raises(error, match=f"`{name}`"):
        call(*args, **kwargs)


@pytest.mark.parametrize("name", ["a", "b", "c", "start", "finish"])
def test_a_cost_is_finite_and_not_negative(name: str):
    for value in (NAN, INF, -1e-9, 10**400):
        refused(name, ValueError, Cost, **{"a": 1.0, "b": 1.0, name: value})
    for value in ("1", None, [1]):
        refused(name, TypeError, Cost, **{"a": 1.0, "b": 1.0, name: value})


def test_a_step_takes_time():
    refused("a", ValueError, Cost, 0, 0, 0, start=1)
    refused("factors", ValueError, Cost, 1, 1, factors=((2.0, 1.0), (1.0, 1.0)))
    refused("factors", ValueError, Cost, 1, 1, factors=((1.0, 0.0),))
    refused("variation", ValueError, Cost, 1, 1, variation=((1.0, NAN),))
    refused("variation", ValueError, Cost, 1, 1, variation=((1.0, 0.0),))


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("text_tokens", -50, ValueError),
        ("text_tokens", "5", TypeError),
        ("image_tokens", 0, ValueError),
        ("image_tokens", NAN, TypeError),
        ("guidance", (), ValueError),
        ("guidance", ("a",), TypeError),
        ("guidance", "77", TypeError),
        ("guidance", (NAN,), ValueError),
        ("arrival", NAN, ValueError),
        ("arrival", "soon", TypeError),
        ("priority", NAN, ValueError),
        ("priority", "3", TypeError),
        ("step", 5, ValueError),
        ("step", -1, ValueError),
    ],
)
def test_a_job_could_be_a_request(name: str, value, error: type[Exception]):
    refused(name, error, replace, SMALL, **{name: value})


@pytest.mark.parametrize("play", [simulate, lambda *args, **more: simulate_batches(*args, **{"batch": 2, **more})])
def test_what_cannot_be_simulated_is_refused(play):
    refused("devices", ValueError, play, [SMALL], COST, devices=0)
    for devices in ("2", 1.5):
        refused("devices", TypeError, play, [SMALL], COST, devices=devices)
    refused("jobs", ValueError, play, [], COST)
    for cost in (Cost(1e308, 1e308), Cost(1e-320, 0)):
        with pytest.raises(ValueError, match="the jobs take"):
            play([replace(SMALL, arrival=1.0)], cost)


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_holds_a_job(batch: int):
    refused("batch", ValueError, simulate_batches, [SMALL], COST, batch=batch)


def test_batches_before_time_zero_do_not_wait_for_it():
    report = simulate_batches([replace(SMALL, arrival=-1000.0)], COST, batch=1)

    assert report.jobs[0].latency == pytest.approx(4 * COST.step(SMALL.segments))


@pytest.mark.parametrize(
    "kinds", [[], [(0.0, SMALL)], [(1.0, SMALL), (-1.0, LARGE)], [(NAN, SMALL)], [(1e308, SMALL)] * 2]
)
def test_kinds_have_weights(kinds):
    refused("kinds", ValueError, poisson, kinds, 1.0, 5)
    refused("kinds", ValueError, rate_of_load, kinds, COST, 0.8)


def test_a_rate_is_above_zero_and_in_the_reach_of_numbers():
    kinds = [(1.0, SMALL)]
    for rate in (0, -1.0, NAN, INF, 1e-320):
        refused("rate", ValueError, poisson, kinds, rate, 5)
    refused("rate", TypeError, poisson, kinds, "1", 5)
    refused("count", ValueError, poisson, kinds, 1.0, -1)
    for load in (0, -0.5, NAN, INF):
        refused("load", ValueError, rate_of_load, kinds, COST, load)
    refused("devices", ValueError, rate_of_load, kinds, COST, 0.8, 0)
    refused("cost", ValueError, rate_of_load, kinds, Cost(1e308, 1e308), 0.8)
    assert poisson(kinds, 1.0, 0) == []


def test_a_percentile_is_a_share_above_zero_up_to_one():
    report = simulate([replace(SMALL, arrival=100.0 * i) for i in range(3)] + [replace(LARGE, arrival=300)], COST)

    assert report.percentile(1) == max(job.latency for job in report.jobs) > report.percentile(1e-9)
    for share in (2, 0, -1, NAN):
        refused("share", ValueError, report.percentile, share)
    refused("share", TypeError, report.percentile, "0.5")


def test_fit_refuses_steps_that_say_nothing(capfd):
    good = [([5], 1.0), ([6], 1.1), ([7], 1.2)]
    for seconds in (NAN, INF, 0, -1.0):
        refused(r"steps\[3\]", ValueError, fit_cost, [*good, ([8], seconds)])
    for lengths in ([], [0], [-2]):
        refused(r"steps\[3\]", ValueError, fit_cost, [*good, (lengths, 1.0)])
    for step in (([1.5], 1.0), (["5"], 1.0), ([5], "1")):
        refused(r"steps\[3\]", TypeError, fit_cost, [*good, step])
    with pytest.raises(ValueError, match="`steps` holds 4, of 2 different sizes"):
        fit_cost([([5], 1.0)] * 3 + [([6], 1.0)])
    fit_cost([(lengths, seconds * 1e-319) for lengths, seconds in good])
    assert capfd.readouterr().err == ""


def test_the_old_name_of_fit_cost_works_and_says_the_new_one():
    with pytest.warns(FutureWarning, match=r"`ideoflow\.simulate\.fit` is called `ideoflow\.simulate\.fit_cost` now"):
        from ideoflow.simulate import fit
    assert fit is fit_cost
