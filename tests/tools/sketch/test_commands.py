"""`python -m tools.sketch`: what it refuses before it starts to work."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tools.sketch.__main__ import app


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["export", "nowhere", "model"], "nowhere/sketch.safetensors"), (["score", "--count", "0"], "--count")],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_end_with_code_2_and_a_word_of_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 2 and says in result.output
    assert not any(tmp_path.iterdir())


def test_the_packages_command_of_old_says_where_it_went():
    ended = subprocess.run([sys.executable, "-m", "ideoflow.sketch", "score"], capture_output=True, text=True)
    assert ended.returncode == 1 and "python -m tools.sketch" in ended.stderr
