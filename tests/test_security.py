"""What docs/security.md promises: each test that it names is there, and the source does nothing that it rules out."""

import ast
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SOURCE = sorted((ROOT / "src").rglob("*.py"))
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)


@pytest.mark.parametrize(("file", "test"), sorted(set(NAMED)), ids=lambda value: value)
def test_a_test_that_the_page_names_is_there(file: str, test: str):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert test in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def test_every_promise_of_the_page_names_a_test():
    rows = [line for line in PAGE.splitlines() if line.startswith("| **")]
    assert len(rows) >= 8 and all("tests/" in row.rsplit("|", 2)[1] for row in rows)


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Every call in the source: where it stands, the dotted name of what is called, and its node."""
    for path in SOURCE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), node


def imports_from() -> Iterator[tuple[str, ast.ImportFrom]]:
    """Every import of names out of a module, and where."""
    for path in SOURCE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def imports() -> Iterator[tuple[str, str]]:
    """Every module that the source imports, and where."""
    for path in SOURCE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            yield from ((f"{path.relative_to(ROOT)}:{node.lineno}", name) for name in names)


STARTERS = ("multiprocessing", "concurrent", "pty", "webbrowser", "popen2", "commands")
PICKLES = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "code", "runpy")


def test_the_source_evaluates_and_unpickles_nothing():
    forbidden = ("eval", "exec", "compile", "__import__", "torch.load", "torch.jit.load", "np.load", "numpy.load")
    assert [(where, name) for where, name in imports() if name.partition(".")[0] in PICKLES] == []
    assert [(where, name) for where, name, _ in calls() if name in forbidden] == []
    trusting = [
        (where, ast.unparse(keyword.value))
        for where, _, node in calls()
        for keyword in node.keywords
        if keyword.arg in ("trust_remote_code", "allow_pickle", "custom_pipeline")
        and ast.unparse(keyword.value) != "False"
    ]
    assert trusting == []


def test_the_source_starts_no_program():
    starters = re.compile(
        r"(os\.(system|popen|exec\w*|spawn\w*|posix_spawn\w*)|subprocess\.\w+|pty\.spawn|webbrowser\.\w+)"
    )
    # `ideoflow serve --open` asks the desktop to show its page: nothing of it comes from a file or a client.
    shown = [(where.partition(":")[0], name) for where, name, _ in calls() if starters.fullmatch(name)]
    assert shown == [("src/ideoflow/serving/running.py", "webbrowser.open")]
    # Threads are no programs: their pool, and what it promises, are imported by their own names alone.
    threads = [
        where
        for where, node in imports_from()
        if node.module == "concurrent.futures"
        and {alias.name for alias in node.names} <= {"Future", "InvalidStateError", "ThreadPoolExecutor"}
    ]
    started = [(where, name) for where, name in imports() if name.partition(".")[0] in STARTERS]
    assert [name for where, name in started if where not in threads] == ["webbrowser"]
    # By these imports a call would have a name that is not looked for above.
    hidden = [
        (where, node.module, alias.name)
        for where, node in imports_from()
        for alias in node.names
        if (node.module == "os" and starters.fullmatch(f"os.{alias.name}"))
        or (node.module == "subprocess" and not alias.name.endswith(("Error", "Expired")))
        or (node.module in ("torch", "numpy") and alias.name == "load")
    ]
    assert hidden == []


def test_pictures_are_opened_in_one_place_and_by_a_list_of_formats():
    opened = [(where, node) for where, name, node in calls() if name in ("Image.open", "PIL.Image.open")]
    assert [where.partition(":")[0] for where, _ in opened] == ["src/ideoflow/images.py"]
    assert all("formats" in [keyword.arg for keyword in node.keywords] for _, node in opened)


def test_drawing_with_a_local_model_asks_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from ideoflow import save_image, sketch
    from ideoflow.pictures import read_settings

    def asked(*arguments: object, **options: object) -> None:
        raise AssertionError(f"the network was asked: {arguments}")

    monkeypatch.setattr(socket, "getaddrinfo", asked)
    monkeypatch.setattr(socket.socket, "connect", asked)
    pipe = sketch.load()
    pipe.set_progress_bar_config(disable=True)
    caption = '{"compositional_deconstruction":{"background":"plain red","elements":[]}}'
    options = {"size": (96, 96), "preset": "V4_TURBO_12", "num_inference_steps": 1}
    image = pipe(caption, generator=torch.Generator().manual_seed(1), **options).images[0]
    assert read_settings(save_image(image, tmp_path / "a.png"))["seed"] == 1


def test_a_file_alone_asks_for_the_rest_of_its_pipeline_and_for_nothing_else(monkeypatch: pytest.MonkeyPatch):
    from ideoflow import Ideogram4Pipeline, sketch

    class AskedError(Exception):
        """In place of an answer."""

    asked = []

    def connect(*arguments: object, **options: object) -> None:
        raise AssertionError(f"the network was asked: {arguments}")

    def download(name: str, **options: object) -> None:
        asked.append(name)
        raise AskedError

    monkeypatch.setattr(socket, "getaddrinfo", connect)
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(Ideogram4Pipeline, "download", download)
    file = sketch.path() / "transformer" / "diffusion_pytorch_model.safetensors"
    assert Ideogram4Pipeline.from_single_file(file, config=sketch.path()) is not None
    assert asked == []
    with pytest.raises(AskedError):
        Ideogram4Pipeline.from_single_file(file)
    assert asked == ["ideogram-ai/ideogram-4-nf4-diffusers"]
