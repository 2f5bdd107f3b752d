"""`ideoflow serve`: its options are the settings of a server."""

from __future__ import annotations

import typer

from ideoflow.cli import app
from ideoflow.serving.server_settings import ServerSettings

OTHER_NAMES = {"lora": "loras", "cors_origin": "cors_origins", "allowed_host": "allowed_hosts", "precision": "dtype"}
NO_SETTINGS = {"api_key_file", "open_browser"}
NO_OPTIONS = {"api_keys", "quantize", "max_body"}  # a file's, precision's, and one that nobody has to change


def options():
    built = typer.main.get_command(app)
    command = built.resolve_command(typer.Context(built), ["serve"])[1]
    return {OTHER_NAMES.get(one.name, one.name): one.default for one in command.params if one.name != "help"}


def test_every_setting_has_an_option():
    assert set(options()) - NO_SETTINGS == set(ServerSettings.model_fields) - NO_OPTIONS


def test_what_is_left_out_is_as_the_settings_have_it():
    for name, default in options().items():
        if default not in (None, [], ()) and name in ServerSettings.model_fields:
            assert type(field := ServerSettings.model_fields[name].default)(default) == field, name
