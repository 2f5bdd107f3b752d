"""The roofline's command: its tables and its JSON, machines, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from benchmarks.roofline import BASE, IMPLEMENTATIONS, MACHINES, PARTS, STEP, TABLES, Config
from benchmarks.roofline import __main__ as roofline
from ideoflow import Ideogram4Transformer2DModel

from .cases import NARROW


def test_the_command_prints_a_table_of_each_machine_and_writes_json(tmp_path, capsys):
    out = tmp_path / "made" / "roofline.json"
    roofline.main(["--sample", "400,64,64", "--sample", "90,32,32,unguided", "--steps", "20", "--out", str(out)])
    printed = capsys.readouterr().out
    figures = json.loads(out.read_text())
    assert figures["samples"][1] == {"text": 90, "rows": 32, "cols": 32, "guided": False}
    assert set(figures["implementations"]) == {i.name for i in IMPLEMENTATIONS}
    for machine in MACHINES.values():
        assert machine.name in printed
        for side in figures["implementations"].values():
            time = side["time"][machine.name]
            assert sum(part["share"] for part in time["parts"].values()) == pytest.approx(1)
            assert time["all_steps_seconds"] == pytest.approx(time["once_seconds"] + 20 * time["step_seconds"])
    for name in PARTS:
        assert printed.count(f"\n{name} ") == 1 + len(MACHINES)
    step = figures["implementations"][BASE]["work"]["cuda"][STEP]
    assert sum(step[name]["matrix_flops"] for name in PARTS) == step["total"]["matrix_flops"]
    by_type = figures["implementations"]["diffusers"]["work"]["cuda"][STEP][TABLES]["bytes"]
    assert set(by_type["written"]) == {"float32", "bfloat16", "bool"}


def test_the_command_takes_a_config_and_measures_this_machine(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config, out = tmp_path / "config.json", tmp_path / "roofline.json"
    Ideogram4Transformer2DModel(**NARROW).save_config(tmp_path)
    arguments = ["--measure", "--dtype", "float32", "--sample", "5,2,3", "--config", str(config), "--out", str(out)]
    roofline.main(arguments)
    figures = json.loads(out.read_text())
    assert figures["config"] == asdict(Config.of(NARROW))
    (machine,) = figures["machines"]
    assert machine["device"] == "cpu" and set(machine["matrix"]) == {"float32", "bfloat16"}
    assert min(*machine["matrix"].values(), machine["bandwidth"]) > 0
    assert "measured" in capsys.readouterr().out


def test_the_command_takes_a_machine_of_the_users_own(capsys):
    roofline.main(["--tflops", "100", "--bandwidth", "2", "--dtype", "float32"])
    assert "your machine: 100 TFLOP/s, 2 TB/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "float32"], "use --measure, or --tflops and --bandwidth"),
        (["--tflops", "100"], "give both"),
        (["--tflops", "0", "--bandwidth", "1"], "must be positive"),
        (["--measure", "--machine", "h200"], "choose one"),
        (["--sample", "400,64"], "TEXT,ROWS,COLS"),
        (["--sample", "400,64,0"], "1 or more"),
        (["--sample", "400,64,64,guarded"], "TEXT,ROWS,COLS"),
        (["--sample", "2049,64,64"], "up to 2048 tokens"),
        (["--steps", "0"], "at least 1"),
        (["--config", "/nowhere/config.json"], "--config"),
    ],
)
def test_the_command_refuses_with_what_it_needs(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        roofline.main(arguments)
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("content", ["[1]", '{"num_layers": 0}', '{"adaln_dim": "wide"}', "{"])
def test_the_command_refuses_a_file_that_is_no_config(content, tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(SystemExit):
        roofline.main(["--config", str(path)])
    assert "--config:" in capsys.readouterr().err
