"""docs/fitting.md shows what the code gives: tables are those of the commands above them, and of the kept figures."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ideoflow.cli import app

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "fitting.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"<!-- cards -->\n```sh\nideoflow (.+?)\n```\n\n((?:\|.*\n)+)", PAGE)


@pytest.mark.parametrize(("command", "shown"), COMMANDS, ids=[command for command, _ in COMMANDS])
def test_a_table_is_what_its_command_prints(command, shown):
    result = CliRunner().invoke(app, shlex.split(command))
    assert result.exit_code == 0 and result.stdout.strip() == shown.strip()


def test_the_page_has_both_tables():
    assert len(COMMANDS) == 2


def test_the_measured_table_is_that_of_the_kept_figures():
    figures = json.loads((ROOT / "benchmarks" / "results" / "memory-cpu.json").read_text())
    assert len(figures["results"]) == 6
    for row in figures["results"]:
        numbers = " | ".join(f"{row[key] / 1e6:.0f}" for key in ("weights", "estimated", "measured"))
        off = [phase["estimated"] / phase["measured"] - 1 for phase in row["phases"].values()]
        assert f"| {row['case']} | {numbers} | {row['off']:+.1%} | " + " | ".join(f"{x:+.1%}" for x in off) in PAGE
        assert abs(row["off"]) <= 0.15
