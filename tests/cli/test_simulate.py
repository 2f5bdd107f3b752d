"""`ideoflow simulate`: its figures are the library's, its mistakes are one line, its file is whole."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ideoflow.cli import app
from ideoflow.cli.console import out
from ideoflow.presets import PRESETS
from ideoflow.simulate import Cost, Job, fit_cost, poisson, rate_of_load, simulate, simulate_batches

COST = "0.002,4e-6,3e-10"
MIX = ["--job", "512x512:20:0.9", "--job", "1024x768:turbo:0.1:400"]
SMALL = Job(300, 32 * 32, (7.0,) * 20, kind="512x512:20")
LARGE = Job(400, 64 * 48, PRESETS["V4_TURBO_12"].guidance, kind="1024x768:turbo:400")


def run(*arguments: str, fails: int = 0):
    done = CliRunner().invoke(app, ["simulate", *arguments], env={"COLUMNS": "120"})
    assert done.exit_code == fails, done.output
    return done


def figures(*arguments: str, tmp_path: Path):
    file = tmp_path / "figures.json"
    run(*arguments, "--json", str(file))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    return json.loads(file.read_text())


def test_the_figures_are_those_of_the_library(tmp_path: Path):
    options = ["--max-tokens", "9000", "--devices", "2", "--count", "200", "--seed", "3", "-p", "fifo", "-p", "fair"]
    found = figures(*MIX, "--cost", COST, "--load", "0.7", *options, tmp_path=tmp_path)

    cost, kinds = Cost(0.002, 4e-6, 3e-10), [(0.9, SMALL), (0.1, LARGE)]
    rate = rate_of_load(kinds, cost, 0.7, devices=2)
    traffic = poisson(kinds, rate, 200, seed=3)
    assert found["settings"]["rate"] == pytest.approx(rate) and list(found["policies"]) == ["fifo", "fair"]
    for policy, own in found["policies"].items():
        report = simulate(traffic, cost, devices=2, policy=policy, max_tokens=9000)
        assert own["pictures_per_second"] == pytest.approx(report.throughput)
        for kind in (SMALL.kind, LARGE.kind):
            assert own["jobs"][kind]["p95"] == pytest.approx(report.percentile(0.95, kind))
        assert sum(kind["count"] for kind in own["jobs"].values()) == 200


def test_batches_of_equal_size_stand_beside_the_policies(tmp_path: Path):
    found = figures(*MIX, "--cost", COST, "--rate", "3", "--policy", "fair,batches", "--batch", "2", "--count", "100",
                    tmp_path=tmp_path)  # fmt: skip

    traffic = poisson([(0.9, SMALL), (0.1, LARGE)], 3.0, 100)
    report = simulate_batches(traffic, Cost(0.002, 4e-6, 3e-10), batch=2)
    assert found["policies"]["batches"]["busy"] == pytest.approx(report.busy)
    assert found["policies"]["batches"]["padding"] == pytest.approx(report.waste)


def test_the_table_shows_each_kind_under_each_policy(monkeypatch):
    monkeypatch.setattr(out, "_width", 100)  # whatever the terminal's is, if there is one
    shown = run(*MIX, "--cost", COST, "-p", "fifo", "-p", "fair", "--count", "50").stdout

    assert shown.count("512x512:20") == 2 and shown.count("1024x768:turbo:400") == 2
    assert all(word in shown for word in ("requests a second on 1 device", "pictures/s", "p95", "fifo", "fair"))


@pytest.mark.parametrize("width", [44, 60, 100])
@pytest.mark.parametrize("terminal", [True, False])
def test_no_terminal_is_so_narrow_that_a_figure_is_cut(monkeypatch, width, terminal):
    monkeypatch.setattr(out, "_width", width)
    monkeypatch.setattr(out, "_force_terminal", terminal)
    shown = run(*MIX, "--cost", COST, "-p", "fifo", "-p", "fair", "--count", "50").stdout

    assert "…" not in shown and shown.count("request ") == (2 if terminal and width < 100 else 1)
    table = [line for line in shown.splitlines() if "512x512:20" in line]
    assert len(table) == 2 and all(len(line.split()) >= 5 for line in table)
    if terminal:
        inside = shown.splitlines()[1:-1]  # the sentences around are for the terminal to wrap
        assert max(map(len, inside)) <= width


@pytest.mark.parametrize("wrapped", [True, False])
def test_the_cost_is_fitted_from_measured_steps(tmp_path: Path, wrapped: bool):
    true = Cost(0.004, 3e-6, 2e-9)
    sets = [[100 * n, 37 * n] * (1 + n % 3) for n in range(1, 15)]
    steps = [{"segments": lengths, "seconds": true.step(lengths)} for lengths in sets]
    file = tmp_path / "steps.json"
    file.write_text(json.dumps({"steps": steps} if wrapped else steps))
    cost = Cost(**figures("-j", "512x512:4", "--steps", str(file), "--count", "5", tmp_path=tmp_path)["cost"])

    assert [cost.a, cost.b, cost.c] == pytest.approx([true.a, true.b, true.c], rel=1e-6)


def test_measured_steps_vary_and_numbers_do_not(tmp_path: Path):
    true = Cost(0.004, 3e-6)
    sizes = [200 + 100 * (i % 9) for i in range(600)]
    steps = [([n], true.step([n]) * (2.5 if i % 150 < 30 else 0.7)) for i, n in enumerate(sizes)]
    file = tmp_path / "steps.json"
    file.write_text(json.dumps([{"segments": lengths, "seconds": seconds} for lengths, seconds in steps]))
    options = ["-j", "512x512:20", "--rate", "3", "--count", "100", "--seed", "5", "-p", "fair,batches"]
    measured = figures(*options, "--steps", str(file), tmp_path=tmp_path)
    given = figures(*options, "--cost", "0.004,3e-6", tmp_path=tmp_path)
    cost, traffic = fit_cost(steps), poisson([(1.0, Job(300, 1024, (7.0,) * 20))], 3.0, 100, seed=5)

    assert measured["varies_as_measured_steps"] == 600 and given["varies_as_measured_steps"] == 0
    assert "variation" not in measured["cost"]
    reports = simulate(traffic, cost, seed=5), simulate_batches(traffic, cost, batch=4, seed=5)
    for name, report in zip(("fair", "batches"), reports, strict=True):
        assert measured["policies"][name]["jobs"]["512x512:20"]["p99"] == pytest.approx(report.percentile(0.99))
    assert "varies as in 600 measured steps" in run(*options, "--steps", str(file)).stdout
    assert "varies" not in run(*options, "--cost", "1,0").stdout


def test_captions_and_pictures_cost_what_is_given(tmp_path: Path):
    options = ["-j", "32x16:3:1:10", "--cost", "1,0,0,5,0.25", "--rate", "1e-6", "--count", "1"]
    found = figures(*options, tmp_path=tmp_path)

    assert found["policies"]["fair"]["jobs"]["32x16:3:10"]["p50"] == pytest.approx(5 + 3 + 2 * 0.25)


def test_the_bundled_model_is_measured(tmp_path: Path):
    options = ["-j", "96x96:12:5:40", "-j", "192x192:20:1:40", "--measure", "--max-tokens", "450", "--count", "20"]
    found = figures(*options, tmp_path=tmp_path)
    cost = Cost(**{**found["cost"], "factors": tuple(map(tuple, found["cost"]["factors"]))})

    assert 0 < cost.step((76, 36)) < 60 and 0 < cost.step((184, 144)) < 60  # seconds, whatever else is running
    assert cost.start > 0 and cost.finish > 0


def test_an_old_file_is_replaced_whole(tmp_path: Path):
    file = tmp_path / "figures.json"
    file.write_text("old and longer than nothing")
    figures(*MIX, "--cost", COST, "--count", "10", tmp_path=tmp_path)

    assert "policies" in json.loads(file.read_text()) and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--cost", COST], "--job is missing"),
        ([*MIX], "how long does a step take? Give one of --cost"),
        ([*MIX, "--cost", COST, "--measure"], "Give one of --cost"),
        ([*MIX, "--cost", "0.1"], "--cost '0.1' is not A,B"),
        ([*MIX, "--cost", "1,2,3,4,5,6"], "is not A,B"),
        ([*MIX, "--cost", "1,-2"], "none below 0"),
        ([*MIX, "--cost", "0,0"], "not all of A, B and C are 0"),
        ([*MIX, "--cost", "nan,1"], "none below 0"),
        ([*MIX, "--cost", COST, "--load", "0.5", "--rate", "1"], "--load and --rate say the same thing"),
        ([*MIX, "--cost", COST, "--load", "0"], "--load 0: give a number above 0"),
        ([*MIX, "--cost", COST, "--policy", "lifo"], "'lifo' is unknown: choose from fair, fifo, priority, batches"),
        (["-j", "512x512", "--cost", COST], "--job '512x512' is not WIDTHxHEIGHT:STEPS"),
        (["-j", "512:20", "--cost", COST], "is not WIDTHxHEIGHT:STEPS"),
        (["-j", "512x512:slow", "--cost", COST], "is not WIDTHxHEIGHT:STEPS"),
        (["-j", "500x512:20", "--cost", COST], "positive multiples of 16"),
        (["-j", "512x512:0", "--cost", COST], "steps and caption are at least 1"),
        (["-j", "512x512:20:-1", "--cost", COST], "the weight is above 0"),
        (["-j", "512x512:20:1:0", "--cost", COST], "steps and caption are at least 1"),
        (["-j", "512x512:99999999999", "--cost", COST], "the most is 1000 as steps"),
        (["-j", "16x160000000000000000000:20", "--cost", COST], "the most is 16384 as side"),
        (["-j", "512x512:20:1:100000000", "--cost", COST], "the most is 100000 as caption"),
        ([*MIX, "--cost", "1e300,1e300,1e300"], "none above 1e+06"),
        ([*MIX, "--cost", COST, "--rate", "1e-320"], "give a number above 0, from 1e-09 to 1e+09"),
        ([*MIX, "--cost", COST, "--load", "1e200"], "give a number above 0, from 1e-09 to 1e+09"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_says_what_to_do(arguments: list[str], says: str):
    done = run(*arguments, fails=2)
    assert says in done.stderr and len(done.stderr.strip().splitlines()) == 1 and done.stdout == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}", "KeyError: 'steps'"),
        ("nothing", "is not a list of"),
        ('[{"segments": 3, "seconds": 1}]', "TypeError"),
        ('[{"segments": [5]}]', "KeyError: 'seconds'"),
        ("[" * 100_000, "RecursionError"),
        ('[{"segments": [0], "seconds": 1}]', "`steps[0]` is 0: give a whole number from 1 as the length"),
        ('[{"segments": [5.5], "seconds": 1}]', "`steps[0]` is 5.5: give a whole number"),
        ('[{"segments": "55", "seconds": 1}]', "`steps[0]` is '5': give a whole number"),
        ('[{"segments": [], "seconds": 1}]', "`steps[0]` has no segment"),
        ('[{"segments": [5], "seconds": 0}]', "`steps[0]` is 0: give a finite number above 0"),
        ('[{"segments": [5], "seconds": NaN}]', "`steps[0]` is nan"),
        ('[{"segments": [5], "seconds": 1' + "0" * 400 + "}]", "give a finite number above 0"),
        ('[{"segments": [5], "seconds": 1}]', "measure at least three"),
    ],
)
def test_a_file_of_steps_that_cannot_be_read_is_named(tmp_path: Path, text: str, says: str):
    file = tmp_path / "steps.json"
    file.write_text(text)
    shown = run(*MIX, "--steps", str(file), fails=2).stderr
    assert says in shown and len(shown.strip().splitlines()) == 1
    file.unlink()
    assert "No such file" in run(*MIX, "--steps", str(file), fails=2).stderr


def test_a_file_that_cannot_be_written_is_named_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ideoflow.simulate.simulate", lambda *_, **__: pytest.fail("it ran"))
    (tmp_path / "file").touch()
    for place, says in (
        (tmp_path, "is a folder: name a file"),
        (tmp_path / "file" / "a.json", "is a file, not a folder"),
    ):
        done = run(*MIX, "--cost", COST, "--json", str(place), fails=2)
        assert f"--json {place}" in done.stderr and says in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_file_in_a_missing_folder_is_written(tmp_path: Path):
    file = tmp_path / "new" / "folder" / "figures.json"
    run(*MIX, "--cost", COST, "--count", "5", "--json", str(file))

    assert "policies" in json.loads(file.read_text()) and list(file.parent.iterdir()) == [file]


def test_the_help_has_examples_that_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    shown = run("--help").stdout
    lines = [line.strip(" │") for line in shown.splitlines()]
    examples = [line.split()[2:] for line in lines if line.startswith("ideoflow simulate -")]
    assert len(examples) == 6
    for example in examples:
        if "--measure" not in example and "--steps" not in example:
            run(*example, "--count", "20")  # --p95 plays more


def test_progress_counts_all_jobs():
    seen: list[tuple[int, int]] = []
    traffic = poisson([(1.0, replace(SMALL))], 1.0, 30)
    simulate(traffic, Cost(0.002, 4e-6), progress=lambda done, total: seen.append((done, total)))

    assert seen == [(n, 30) for n in range(1, 31)]


# Fleets


def plans(*arguments: str, tmp_path: Path) -> dict:
    found = figures("-j", "512x512:4:3", "-j", "1024x1024:turbo", "--cost", "h100", *arguments, tmp_path=tmp_path)
    return {one["plan"]: one for one in found["plans"]}


def test_a_fleet_is_asked_for_the_fewest_gpus(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("ideoflow.simulate.sizing.FEWEST", 60)
    found = plans("--gpus", "60", "--rate", "1", "--p95", "6", tmp_path=tmp_path)
    assert list(found) == ["one", "guidance=2", "context=2", "context=3", "context=6", "guidance=2,context=2",
                           "guidance=2,context=3"]  # fmt: skip
    for one in found.values():
        assert one["gpus"] == one["replicas"] * one["gpus_a_replica"] <= 60 and one["p95"] <= 6
    assert found["guidance=2"]["alone"]["1024x1024:turbo"] < found["one"]["alone"]["1024x1024:turbo"]
    shown = run("-j", "512x512:4", "--cost", "h100", "--gpus", "60", "--rate", "1", "--p95", "4.5").stdout
    assert (
        "All figures are simulated" in shown and "p95 within 4.5 s takes" in shown and "guidance=2,context=3" in shown
    )
    shown = run("-j", "512x512:4", "--cost", "h100", "--gpus", "2", "--rate", "60", "--p95", "4.5").stdout
    assert "no plan keeps p95 within 4.5 s on 2 GPUs" in shown and "> 2" in shown


def test_a_fleet_of_named_plans_is_played_with_all_gpus(tmp_path: Path):
    options = ["--gpus", "1000", "--parallel", "guidance=2,context=2", "--parallel", "tensor=2", "--rate", "30"]
    found = plans(*options, "--count", "300", "--failures", "3600:30", tmp_path=tmp_path)
    assert {name: one["replicas"] for name, one in found.items()} == {"guidance=2,context=2": 250, "tensor=2": 500}
    assert all(one["failures"] >= 0 and one["p50"] <= one["p95"] <= one["p99"] for one in found.values())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--parallel", "guidance=2"], "--parallel is about a fleet: give --gpus as well"),
        (["--p95", "3"], "--p95 is about a fleet"),
        (["--failures", "60:1"], "--failures is about a fleet"),
        (["--gpus", "4", "--devices", "4"], "--gpus and --devices say the same thing"),
        (["--gpus", "4", "--p95", "3"], "give it as --rate"),
        (["--gpus", "4", "--p95", "-3", "--rate", "1"], "--p95 -3: give seconds above 0"),
        (["--gpus", "4", "--policy", "batches"], "--gpus takes one --policy"),
        (["--gpus", "4", "--parallel", "guidance=3"], "give a whole number from 1 to 2"),
        (["--gpus", "4", "--parallel", "pipeline=2"], "--parallel 'pipeline=2' is no plan"),
        (["--gpus", "4", "--parallel", "tensor=4"], "18 heads are shared in whole numbers"),
        (["--gpus", "4", "--parallel", "context=6"], "--parallel context=6 takes 6 GPUs, and --gpus is 4"),
        (["--gpus", "4", "--link", "wifi"], "--link 'wifi' is none of nvlink, pcie"),
        (["--gpus", "4", "--link", "0,1"], "--link '0,1' is none of"),
        (["--gpus", "4", "--failures", "never"], "--failures 'never' is not EVERY:REPAIR"),
    ],
)
def test_a_fleet_that_cannot_be_is_one_line_that_says_what_to_do(arguments: list[str], says: str):
    done = run(*MIX, "--cost", COST, *arguments, fails=2)
    assert says in done.stderr and len(done.stderr.strip().splitlines()) == 1 and done.stdout == ""
