"""Build docs/*.md into site/*.html: one plain page each, with the pages listed on top; links between pages are kept."""

from __future__ import annotations

import shutil
from html import escape
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

DOCS = Path(__file__).parent
SITE = DOCS.parent / "site"

STYLE = """
:root { color-scheme: light dark; }
body { font: 17px/1.6 system-ui, sans-serif; max-width: 46rem; margin: 0 auto; padding: 1.5rem; }
nav { display: flex; flex-wrap: wrap; gap: 0.3rem 1.2rem; padding-bottom: 0.8rem; border-bottom: 1px solid #8886; }
nav a[aria-current] { font-weight: bold; text-decoration: none; color: inherit; }
pre { padding: 0.9rem; overflow-x: auto; background: #8882; border-radius: 6px; font-size: 0.85em; line-height: 1.45; }
code { font-family: ui-monospace, monospace; font-size: 0.92em; }
pre code { font-size: inherit; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: 0.35rem 0.8rem 0.35rem 0; border-bottom: 1px solid #8884; }
img { max-width: 100%; }
"""


def title(tokens: list[Token], fallback: str) -> str:
    """The text of a page's first heading."""
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open":
            return inline.content.replace("`", "")
    return fallback


def point_to_html(tokens: list[Token]) -> None:
    """Let relative links to `page.md` lead to `page.html`."""
    for token in tokens:
        for child in token.children or []:
            href = str(child.attrs.get("href", ""))
            page, hash_mark, anchor = href.partition("#")
            if child.type == "link_open" and page.endswith(".md") and "://" not in page and not page.startswith(".."):
                child.attrs["href"] = page.removesuffix(".md") + ".html" + hash_mark + anchor


def build(docs: Path = DOCS, site: Path = SITE) -> list[Path]:
    """Write one HTML page for each Markdown page of `docs` and copy its images; the written pages are returned."""
    markdown = MarkdownIt("commonmark").enable("table")
    sources = sorted(docs.glob("*.md"), key=lambda path: (path.stem != "index", path.stem))
    parsed = {path: markdown.parse(path.read_text(encoding="utf-8")) for path in sources}
    titles = {path: title(tokens, path.stem) for path, tokens in parsed.items()}

    site.mkdir(parents=True, exist_ok=True)
    written = []
    for path, tokens in parsed.items():
        point_to_html(tokens)
        links = "".join(
            f'<a href="{other.stem}.html"{" aria-current=page" if other == path else ""}>{escape(titles[other])}</a>'
            for other in sources
        )
        page = site / f"{path.stem}.html"
        page.write_text(
            f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(titles[path])}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
            f"<nav>{links}</nav>\n<main>\n{markdown.renderer.render(tokens, markdown.options, {})}</main>\n"
            f"</body>\n</html>\n",
            encoding="utf-8",
        )
        written.append(page)
    if (docs / "images").is_dir():
        shutil.copytree(docs / "images", site / "images", dirs_exist_ok=True)
    return written


if __name__ == "__main__":
    for page in build():
        print(page.relative_to(SITE.parent))
