"""Nothing that a user could ask for is lost: `public_names.json` lists what there was; a name that changed works on.

The list was written by the code before its rooms were put in order. A name is added to it when users may rely on it,
and leaves it one version after it was renamed.
"""

import importlib
import inspect
import json
import re
import warnings
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from ideoflow.cli import app

LISTED = json.loads((Path(__file__).parent / "public_names.json").read_text(encoding="utf-8"))
CLASSES = {
    "Caption": "ideoflow",
    "Engine": "ideoflow.engine",
    "Event": "ideoflow.engine",
    "Ideogram4Pipeline": "ideoflow",
    "Ideogram4Transformer2DModel": "ideoflow",
    "Request": "ideoflow.engine",
    "Scheduler": "ideoflow.engine",
}
TAKES_THE_REST = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def find(module: str, name: str) -> object:
    with warnings.catch_warnings(action="ignore"):  # names that were changed say so
        found = importlib.import_module(module)
        return getattr(found, name) if hasattr(found, name) else importlib.import_module(f"{module}.{name}")


@pytest.mark.parametrize("module", LISTED["names"])
def test_every_name_is_where_users_import_it_from(module):
    for name in LISTED["names"][module]:
        assert find(module, name) is not None


@pytest.mark.parametrize("kind", LISTED["methods"])
def test_every_method_takes_the_arguments_it_took(kind):
    cls = find(CLASSES[kind], kind)
    for name, arguments in LISTED["methods"][kind].items():
        assert hasattr(cls, name), f"{kind}.{name}"
        if not arguments:
            continue
        parameters = inspect.signature(getattr(cls, name)).parameters
        missing = [one for one in arguments if one not in parameters]
        takes_the_rest = any(parameter.kind in TAKES_THE_REST for parameter in parameters.values())
        assert not missing or takes_the_rest, f"{kind}.{name} takes no {missing}"
        positions = [one for one in parameters if one in arguments]
        assert positions == [one for one in arguments if one in parameters], f"{kind}.{name} has another order"


@pytest.mark.parametrize("command", LISTED["commands"])
def test_every_command_has_the_options_it_had(command):
    options = options_of(command)
    assert [one for one in LISTED["commands"][command] if one not in options] == []


def options_of(command: str) -> set[str]:
    if command == "train":  # its options are made when it is called
        shown = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).output
        return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", shown))
    found = get_command(app)
    for word in command.split():
        found = found.commands[word]
    return {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}


def test_every_preset_and_policy_is_there():
    assert set(LISTED["formats"]["presets"]) <= set(find("ideoflow", "PRESETS"))
    assert set(LISTED["formats"]["policies"]) <= set(find("ideoflow.engine", "POLICIES"))


@pytest.mark.parametrize("form", [*LISTED["formats"]["convert --to"], *LISTED["formats"]["convert --to, adapters"]])
def test_every_form_that_could_be_written_can_be_asked_for(form, tmp_path):
    """Of a file that is not there: a form that is not known is refused first, in other words."""
    done = CliRunner().invoke(app, ["convert", str(tmp_path / "none.safetensors"), str(tmp_path / "to"), "--to", form])
    assert done.exit_code != 0
    assert "none.safetensors" in done.output.replace("\n", ""), done.output
