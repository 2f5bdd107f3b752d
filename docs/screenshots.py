"""Make the screenshots of docs/studio.md: `python docs/screenshots.py`; needs playwright and a Chromium."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
BROWSER = os.environ.get("IDEOFLOW_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
PORT = 8439
CAPTION: dict[str, Any] = {
    "high_level_description": "A red circle, a blue star and the word GO on yellow.",
    "compositional_deconstruction": {
        "background": "plain yellow",
        "elements": [
            {"type": "obj", "bbox": [75, 100, 500, 525], "desc": "a red circle", "color_palette": ["#E53935"]},
            {"type": "obj", "bbox": [75, 575, 475, 950], "desc": "a blue star"},
            {"type": "text", "bbox": [575, 150, 925, 850], "text": "GO", "desc": "black sans letters"},
        ],
    },
}


def open_page(browser: Any, scheme: str) -> Page:
    page: Page = browser.new_page(viewport={"width": 1360, "height": 820}, color_scheme=scheme)
    page.set_default_timeout(120_000)
    page.goto(f"http://127.0.0.1:{PORT}/")
    page.wait_for_selector("body[data-ready]")
    page.click("#import")
    page.fill("#import-text", json.dumps(CAPTION))
    page.click("#import-open")
    page.wait_for_selector(".notice")
    page.evaluate("document.querySelectorAll('.notice').forEach(notice => notice.remove())")
    page.locator(".element-name", has_text="GO").click()
    page.uncheck("#fresh-seed")
    page.get_by_label("Seed", exact=True).fill("2")
    page.keyboard.press("Tab")
    return page


def wait_for(address: str) -> None:
    """Wait until an address answers."""
    for _ in range(600):
        try:
            urllib.request.urlopen(address)
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"{address} does not answer")


def keep(page: Page, name: str) -> None:
    """Write a screenshot in a palette of 128 colours, which is enough and a quarter of the bytes."""
    path = IMAGES / name
    page.screenshot(path=path)
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path, f"{path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    with tempfile.TemporaryDirectory() as data, sync_playwright() as playwright:
        command = [sys.executable, "-m", "ideoflow", "serve", "--port", str(PORT), "--data", data]
        server = subprocess.Popen(command)
        try:
            wait_for(f"http://127.0.0.1:{PORT}/health/ready")
            browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
            page = open_page(browser, "light")
            page.click("#generate")
            page.wait_for_selector("#jobs .job-state[data-status=finished]")
            page.wait_for_selector("#gallery img[src]")
            page.wait_for_selector(".backdrop:not(.preview)")
            page.wait_for_timeout(500)
            keep(page, "studio.png")

            page = open_page(browser, "dark")
            page.click("[data-panel=json]")
            page.fill("#json", page.input_value("#json").replace("[575, 150, 925, 850]", "[575, 150, 9250, 850]"))
            page.wait_for_selector("#json-problems li")
            page.locator(".element-name", has_text="GO").click()
            page.wait_for_timeout(500)
            keep(page, "studio-json.png")
            browser.close()
        finally:
            server.terminate()
            server.wait(60)


if __name__ == "__main__":
    main()
