"""`ideoflow train` as people call it: from flags, from a file, resumed, planned, and with mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib

import pytest
from PIL import Image
from typer.testing import CliRunner

from ideoflow.cli import app
from ideoflow.sketch.world import sample
from ideoflow.training.settings import SECTIONS

FAST = ["--device", "cpu", "--tokens", "500", "--rank", "2", "--preview-steps", "2", "--preview-guidance", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for index in range(5):
        drawn = sample(index)
        drawn.image.save(folder / f"{index}.png")
        (folder / f"{index}.json").write_text(json.dumps(drawn.caption))
    (folder / "broken.png").write_bytes(b"")
    (folder / "broken.txt").write_text("a broken file")
    return folder


def run(*arguments: object):
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


def test_a_run_from_flags_leaves_everything_that_it_promises(data, tmp_path):
    result = run("--data", data, "--out", tmp_path, "--steps", 4, "--save-every", 2, "--preview-every", 2, *FAST)
    assert result.exit_code == 0, result.output
    assert "5 examples, 1 skipped" in result.output and "skipped broken.png: is empty" in result.output
    assert "pytorch_lora_weights.safetensors" in result.output
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and all(line["loss"] > 0 for line in lines)
    assert "broken.png" in (tmp_path / "report.txt").read_text()
    assert list((tmp_path / "tensorboard").iterdir())
    names = sorted(path.name for path in (tmp_path / "previews").iterdir())
    assert names == ["all.png", "step-0000000.png", "step-0000002.png", "step-0000004.png"]
    alone, together = (Image.open(tmp_path / "previews" / name) for name in ("step-0000004.png", "all.png"))
    assert together.height == 3 * alone.height


def test_a_file_with_flags_over_it_and_going_on(data, tmp_path):
    file = tmp_path / "mine.toml"
    assert run("init", file, "--data", data, "--out", tmp_path / "run", "--steps", 2).exit_code == 0
    options = tomllib.loads(file.read_text())
    assert options["data"]["data"] == str(data) and options["training"]["steps"] == 2
    assert options.keys() == SECTIONS.keys()
    assert all(options[section].keys() == kind.model_fields.keys() for section, kind in SECTIONS.items())
    assert run("init", file).exit_code == 2 and run("init", file, "--force").exit_code == 0

    assert run("init", file, "--force", "--data", data, "--out", tmp_path / "run", "--steps", 2).exit_code == 0
    assert run(file, *FAST).exit_code == 0
    again = run(file, *FAST)
    assert again.exit_code == 2 and "--resume" in again.output and "--out" in again.output
    resumed = run(file, *FAST, "--resume", "--steps", 5)
    assert resumed.exit_code == 0, resumed.output
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5]


def test_a_dry_run_plans_and_leaves_only_the_cache(data, tmp_path):
    result = run("--data", data, "--out", tmp_path, "--steps", 1000, "--dry-run", *FAST)
    assert result.exit_code == 0, result.output
    for name in (
        "samples",
        "text tokens",
        "image tokens",
        "filled to",
        "visits",
        "trained weights",
        "together",
        "s a step",
    ):
        assert name in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "`data`: name a folder of pictures"),
        (["--data", "./no-such-folder"], "there is no such folder"),
        (["--data", "FILE"], "is a file: name the folder of the pictures"),
        (["--data", "DATA", "--validation", "FILE"], "`validation` FILE is a file"),
        (["--data", "DATA", "--out", "FILE/run"], "--out FILE/run/train.toml"),
        (["--data", "EMPTY"], "there is no picture in it"),
        (["--data", "DATA", "--steps", "0"], "steps"),
        (["--data", "DATA", "--branch", "other"], "'conditional'"),
        (["--data", "DATA", "--tokens", "50"], "`tokens` is 50, but the largest sample, "),
        (["--data", "DATA", "--targets", "nothing"], "matches no linear layer"),
        (["--data", "DATA", "--optimizer", "sgd"], "adamw"),
        (["--data", "DATA", "--schedule", "up"], "cosine"),
        (["--data", "DATA", "--preview-size", "big"], "WIDTHxHEIGHT"),
        (["--data", "DATA", "--preview-steps", "1001"], "less than or equal to 1000"),
        (["no-such.toml"], "no-such.toml"),
        (["a.toml", "b.toml"], "too many"),
    ],
)
def test_mistakes_are_one_line(data, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    names = {"DATA": data, "FILE": data / "0.json", "EMPTY": tmp_path / "empty"}
    for name, path in names.items():
        arguments, message = [a.replace(name, str(path)) for a in arguments], message.replace(name, str(path))
    result = run("--out", tmp_path / "run", *arguments)
    assert result.exit_code == 2, result.output
    text = " ".join(result.output.split())
    assert "error:" in text and message in text and "Traceback" not in text
    assert not (tmp_path / "run" / "cache").exists()  # before anything is encoded


@pytest.mark.parametrize("option", ["--data", "--validation"])
@pytest.mark.parametrize(
    ("given", "meant"), [("pictres", "pictures"), ("mine/flowes-in-a-vase", "mine/flowers-in-a-vase")]
)
def test_a_misspelt_folder_is_not_asked_for_on_the_hub(data, tmp_path, monkeypatch, option, given, meant):
    monkeypatch.chdir(tmp_path)
    (tmp_path / meant).mkdir(parents=True)
    result = run("--data", data, option, given, "--out", "run")
    assert result.exit_code == 2 and f"{given}: there is no such folder. Did you mean {meant}?" in result.output


def test_a_run_that_has_all_its_steps_says_so(data, tmp_path):
    first = run("--data", data, "--out", tmp_path, "--steps", 1, "--preview-every", 0, *FAST)
    assert first.exit_code == 0 and "taken already" not in first.output
    again = run("--resume", "--out", tmp_path)
    assert again.exit_code == 0 and "all 1 steps are taken already: a larger --steps goes on" in again.output


def test_elsewhere_than_on_a_terminal_there_are_lines_and_no_bars(data, tmp_path):
    result = run("--data", data, "--out", tmp_path, "--steps", 1, "--preview-every", 0, *FAST)
    assert "step 1  loss" in result.output and "wrote " in result.output
    assert "looking at pictures" not in result.output and "left" not in result.output


def test_a_folder_of_another_run_is_refused_before_torch_is_imported(tmp_path):
    (tmp_path / "run" / "checkpoints" / "step-0000006").mkdir(parents=True)
    script = (
        "import sys; from ideoflow.cli import app\n"
        f"try: app(['train', '--data', {str(tmp_path)!r}, '--out', {str(tmp_path / 'run')!r}])\n"
        "finally: print('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "holds checkpoints of an earlier run" in ended.stderr and ended.returncode == 2
    assert ended.stdout.split() == ["False"]


def test_help_teaches_every_option():
    result = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"})
    text = " ".join(result.output.split())
    assert (
        "train init" in text
        and "torchrun" in text
        and "--no-crop" in text
        and "conditional, unconditional, both" in text
    )
    for kind in SECTIONS.values():
        assert all(f"--{name.replace('_', '-')}" in text for name in kind.model_fields)


@pytest.mark.long
def test_it_runs_as_a_module_for_launchers(data, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ideoflow"]
    arguments = ["train", "--data", data, "--out", tmp_path, "--steps", "2", *FAST]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("5 examples") == 1
    assert (tmp_path / "pytorch_lora_weights.safetensors").exists() and (tmp_path / "previews" / "all.png").exists()
