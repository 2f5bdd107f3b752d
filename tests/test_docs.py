"""What the README and the docs show works, each page in order in one empty folder; links lead somewhere."""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MARKDOWN = MarkdownIt("commonmark").enable("table")
RUN = "<!-- run -->"


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    marked: bool  # a `<!-- run -->` comment stands right before it
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    tokens = MARKDOWN.parse(page.read_text(encoding="utf-8"))
    found = []
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type == "fence":
            marked = before is not None and before.type == "html_block" and before.content.strip() == RUN
            found.append(Block(page, token.map[0] + 1, token.info.strip(), marked, token.content))
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
SHELL = [block for block in BLOCKS if block.language == "sh" and block.marked]
RUNNABLE = [block for block in BLOCKS if block in PYTHON or block in SHELL]
ORDER = {page: ran for page in PAGES if (ran := [block for block in RUNNABLE if block.page == page])}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm: list[str]) -> Iterator[Path]:
    """An empty folder to run in, with the examples in it as in a checkout; `ideoflow` starts without importing anew.

    What a page leaves running, as the files `*.pid` in its folder say, is stopped.
    """
    program = tmp_path / "bin" / "ideoflow"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.join(warm)} -m ideoflow "$@"\n')
    program.chmod(0o755)
    path = [str(program.parent), str(Path(sys.executable).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(path))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(folder)
    yield folder
    for file in folder.glob("*.pid"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(file.read_text()), signal.SIGTERM)


def with_free_ports(page: list[Block]) -> list[Block]:
    """A page's blocks with free ports in place of those that its servers listen on: others may run it as well."""
    ports = {}
    for port in re.findall(r"--port (\d{4})", "".join(block.text for block in page)):
        with socket.create_server(("127.0.0.1", 0)) as free:
            ports[port] = str(free.getsockname()[1])
    if not ports:
        return page
    found = re.compile(rf"\b({'|'.join(ports)})\b")
    return [replace(block, text=found.sub(lambda match: ports[match[1]], block.text)) for block in page]


def run(block: Block) -> None:
    """Run a Python block, which stands alone in its names, or a marked block of commands."""
    if block.language == "python":
        exec(compile("\n" * block.line + block.text, str(block.page), "exec"), {"__name__": "__main__"})
        return
    command = ["bash", "-euo", "pipefail", "-c", block.text]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{block}\n{done.stderr}"


@pytest.mark.parametrize("page", ORDER, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_runs_in_order_in_one_folder(page: Path, workplace: Path):
    for block in with_free_ports(ORDER[page]):
        run(block)


def test_a_page_has_ports_of_its_own():
    page = [
        Block(ROOT / "docs" / "x.md", 1, "sh", True, text) for text in ("serve --port 8431", "curl localhost:8431/84")
    ]
    first, second = with_free_ports(page), with_free_ports(page)
    assert first[0].text != page[0].text and first[0].text.split()[-1] in first[1].text
    assert "8431" not in first[1].text and first[1].text.endswith("/84") and second != page


def test_the_pages_have_blocks_of_both_kinds():
    assert PYTHON and SHELL


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files(page: Path):
    for token in MARKDOWN.parse(page.read_text(encoding="utf-8")):
        for child in token.children or []:
            place = str(child.attrs.get("href") or child.attrs.get("src") or "").partition("#")[0]
            if place and "://" not in place:
                assert (page.parent / place).exists(), f"{page.name}: {place}"


def test_the_docs_build_into_linked_pages(tmp_path: Path):
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from build import build
    finally:
        sys.path.pop(0)
    written = build(site=tmp_path)
    assert written[0].stem == "index"
    assert {page.stem for page in written} == {page.stem for page in (ROOT / "docs").glob("*.md")}
    index = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert '<a href="generate.html">' in index and ".md" not in index
