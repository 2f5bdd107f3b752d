"""The studio in a real browser against the real server with the bundled model."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ideoflow.pictures import save_image

playwright = pytest.importorskip("playwright.sync_api", reason="the studio's tests need playwright")
expect = playwright.expect

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = os.environ.get("IDEOFLOW_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser was found: none of {', '.join(BROWSERS)} is here")

STUDIO = Path(__file__).parents[2] / "src/ideoflow/serving/studio"
EXAMPLES = Path(__file__).parents[2] / "examples/captions"
STEPS = "#settings select >> nth=1"
DESK = {"width": 1360, "height": 860}
PATIENCE = int(os.environ.get("IDEOFLOW_PATIENCE", 30)) * 1000


class Served:
    """A server of the bundled model in a thread, on a port that it keeps when it is started again."""

    def __init__(self, data: Path, **options: Any) -> None:
        self.data, self.options, self.port = data, options, 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        import uvicorn

        from ideoflow.serving.app import create_app
        from ideoflow.serving.server_settings import ServerSettings

        app = create_app(ServerSettings(data=self.data, **self.options))
        self._server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", self.port, log_level="warning"))
        self._server.config.timeout_graceful_shutdown = 1
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 120
        while not self._server.started or app.state.jobs is None:
            assert time.monotonic() < deadline, "the server has not started"
            time.sleep(0.05)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()


def until(page: Any, expression: str, argument: Any = None) -> None:
    """Wait until an expression is true. The page forbids the evaluation that Playwright's own waiting needs."""
    end = time.monotonic() + 30
    while not page.evaluate(expression, argument):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(50)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server = Served(tmp_path_factory.mktemp("served"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any, served: Served) -> Iterator[Callable[..., Any]]:
    """Opens the page in a browser that was never there; nothing on it may go wrong unsaid."""
    contexts, wrong = [], []

    def hear(page: Any) -> None:
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if blames(message) else None)

    def blames(message: Any) -> bool:
        return message.type == "error" and "Failed to load resource" not in message.text

    def open_page(address: str | None = None, ready: bool = True, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": DESK, **options})
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        context.on("page", hear)
        page = context.new_page()
        page.goto(address or served.address)
        if ready:
            page.wait_for_selector("body[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def page(visit: Callable[..., Any]) -> Any:
    return visit()


@pytest.fixture(scope="module")
def opened(browser: Any, served: Served) -> Iterator[Any]:
    """A page that tests share, for opening one takes seconds on a busy machine."""
    context = browser.new_context(viewport=DESK)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(served.address)
    page.wait_for_selector("body[data-ready]")
    yield page
    context.close()


@pytest.fixture
def desk(opened: Any) -> Any:
    """The shared page with two boxes that overlap, and everything else as it is at first."""
    page = opened
    page.evaluate("document.querySelectorAll('dialog[open]').forEach(dialog => dialog.close())")
    page.click("[data-panel=settings]")
    page.fill("#gallery-search", "")
    for button, pressed in (("view-snap", "true"), ("view-grid", "false"), ("view-boxes", "true")):
        if page.get_attribute(f"#{button}", "aria-pressed") != pressed:
            page.click(f"#{button}")
    page.locator("#settings select").first.select_option("1:1")
    if page.locator("#fresh-seed").is_checked() is False:
        page.check("#fresh-seed")
    page.get_by_role("spinbutton", name="Pictures").fill("1")
    if page.locator("#clear-picture").is_enabled():
        page.click("#clear-picture")
    open_caption(page, composition(RED, BLUE))
    return page


def caption_of(page: Any) -> dict[str, Any]:
    """The caption that the page would send, in the order of its keys."""
    text: str = page.evaluate("() => document.getElementById('json').value")
    return dict(json.loads(text))


def elements_of(page: Any) -> list[dict[str, Any]]:
    return list(caption_of(page)["compositional_deconstruction"]["elements"])


def open_caption(page: Any, caption: Any) -> None:
    """Import a caption as text."""
    page.click("#import")
    page.fill("#import-text", caption if isinstance(caption, str) else json.dumps(caption))
    page.click("#import-open")
    page.wait_for_selector(".notice")
    page.evaluate("document.querySelectorAll('.notice').forEach(notice => notice.remove())")


def composition(*elements: dict[str, Any], background: str = "plain yellow") -> dict[str, Any]:
    return {"compositional_deconstruction": {"background": background, "elements": list(elements)}}


def thing(desc: str, *box: int, **more: Any) -> dict[str, Any]:
    return {"type": "obj", **({"bbox": list(box)} if box else {}), "desc": desc, **more}


RED, BLUE = thing("a red circle", 100, 100, 500, 500), thing("a blue square", 300, 300, 900, 900)


def point(page: Any, x: float, y: float) -> tuple[float, float]:
    """A place on the screen of thousandths of the canvas."""
    box = page.locator("#stage").bounding_box()
    return box["x"] + box["width"] * x / 1000, box["y"] + box["height"] * y / 1000


def drag(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    page.mouse.move(*point(page, *start))
    page.mouse.down()
    page.mouse.move(*point(page, *((a + b) / 2 for a, b in zip(start, end, strict=True))))
    page.mouse.move(*point(page, *end))
    page.mouse.up()


def with_a_finger(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag as a touch screen tells it."""
    touch = page.context.new_cdp_session(page)
    places = [tuple(a + (b - a) * part / 4 for a, b in zip(start, end, strict=True)) for part in range(5)]
    for kind, place in [("touchStart", places[0]), *(("touchMove", place) for place in places[1:])]:
        x, y = point(page, *place)
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def near(box: list[int], *expected: int) -> bool:
    return all(abs(a - b) <= 4 for a, b in zip(box, expected, strict=True))


def selected(page: Any) -> list[str]:
    return list(page.locator(".elements li.selected .element-title").all_inner_texts())


def choose(page: Any, name: str) -> None:
    page.locator(".element-name", has_text=name).click()


def generate(page: Any) -> None:
    """Draw a picture in few steps, and wait until it is behind the boxes."""
    page.select_option(STEPS, "own")
    page.get_by_label("Number of steps").fill("4")
    page.keyboard.press("Tab")
    page.click("#generate")
    page.wait_for_selector("#jobs .job-state[data-status=finished]")
    page.wait_for_selector(".backdrop:not(.preview)[src^='blob:']")


class TestFirstClick:
    def test_makes_a_picture_seen_while_it_is_drawn(self, page: Any) -> None:
        page.click("#generate")
        page.wait_for_selector(".backdrop.preview[src^='data:image/']")
        expect(page.locator("#canvas-words")).to_contain_text("Step")
        page.wait_for_selector(".backdrop:not(.preview)[src^='blob:']")
        until(page, "document.querySelector('.backdrop').naturalWidth > 0")
        shown = page.evaluate("document.querySelector('.backdrop').naturalWidth")
        assert shown == int(page.input_value("[aria-label='Width in pixels']"))
        expect(page.locator("#gallery img").first).to_have_attribute("src", re.compile("^blob:"))

    def test_every_example_opens_and_keeps_to_the_schema(self, page: Any) -> None:
        count = page.locator("#examples button").count()
        assert count > 1
        for index in range(count):
            page.click("summary:has-text('Examples')")
            page.locator("#examples button").nth(index).click()
            expect(page.locator("#json-state")).to_contain_text("Keeps to the schema")

    def test_asks_no_other_host_and_takes_under_200_kilobytes_to_the_first_paint(
        self, visit: Callable[..., Any], served: Served
    ) -> None:
        page = visit("about:blank", ready=False)
        asked, sizes = [], []

        def is_page(url: str) -> bool:
            return url.startswith(served.address) and "/v1/" not in url

        page.on("request", lambda request: asked.append(request.url))
        page.on("response", lambda response: sizes.append(len(response.body())) if is_page(response.url) else None)
        policy = page.goto(served.address).headers["content-security-policy"]
        page.wait_for_selector("body[data-ready]")
        assert 0 < sum(sizes) < 200_000
        page.click("#generate")
        page.wait_for_selector("#jobs .job-state[data-status=finished]")
        hosts = {url.split("/")[2] for url in asked if not url.startswith(("blob:", "data:"))}
        assert hosts == {served.address.split("/")[2]}
        assert "default-src 'self'" in policy and "unsafe" not in policy


class TestBoxes:
    @pytest.fixture
    def page(self, desk: Any) -> Any:
        return desk

    def test_draws_an_object_and_asks_what_it_is(self, page: Any) -> None:
        page.click("#tool-obj")
        drag(page, (550, 50), (950, 250))
        page.keyboard.type("a green star")
        page.keyboard.press("Enter")
        drawn = elements_of(page)[2]
        assert drawn["type"] == "obj" and drawn["desc"] == "a green star" and near(drawn["bbox"], 50, 550, 250, 950)

    def test_draws_a_text_that_is_seen_in_its_box(self, page: Any) -> None:
        page.click("#tool-text")
        drag(page, (50, 700), (280, 850))
        page.keyboard.type("GO")
        page.keyboard.press("Enter")
        assert list(elements_of(page)[2]) == ["type", "bbox", "text", "desc"]
        assert elements_of(page)[2]["text"] == "GO"
        lettering = page.locator(".box.text .lettering")
        expect(lettering).to_have_text("GO")
        assert float(lettering.evaluate("node => parseFloat(getComputedStyle(node).fontSize)")) > 30

    def test_draws_over_what_is_there(self, page: Any) -> None:
        page.click("#tool-obj")
        drag(page, (350, 350), (480, 480))
        assert near(elements_of(page)[2]["bbox"], 350, 350, 480, 480)

    def test_moves_within_the_picture(self, page: Any) -> None:
        page.click("#view-snap")
        drag(page, (150, 150), (350, 200))
        assert near(elements_of(page)[0]["bbox"], 150, 300, 550, 700)
        drag(page, (350, 200), (-900, 200))
        assert near(elements_of(page)[0]["bbox"], 150, 0, 550, 400)

    def test_resizes_by_a_handle(self, page: Any) -> None:
        choose(page, "a blue square")
        page.click("#view-snap")
        drag(page, (900, 900), (700, 800))
        assert near(elements_of(page)[1]["bbox"], 300, 300, 800, 700)

    def test_resizes_several_as_one(self, page: Any) -> None:
        page.click("#view-snap")
        page.keyboard.press("Control+a")
        drag(page, (900, 900), (500, 500))
        assert near(elements_of(page)[0]["bbox"], 100, 100, 300, 300)
        assert near(elements_of(page)[1]["bbox"], 200, 200, 500, 500)

    def test_selects_several_by_a_frame_and_by_shift(self, page: Any) -> None:
        drag(page, (20, 20), (950, 950))
        assert sorted(selected(page)) == ["a blue square", "a red circle"]
        page.keyboard.press("Escape")
        assert selected(page) == []
        page.mouse.click(*point(page, 150, 150))
        page.keyboard.down("Shift")
        page.mouse.click(*point(page, 800, 800))
        page.keyboard.up("Shift")
        assert len(selected(page)) == 2

    def test_clicks_through_boxes_that_overlap(self, page: Any) -> None:
        page.mouse.click(*point(page, 400, 400))
        assert selected(page) == ["a blue square"]
        page.keyboard.down("Alt")
        page.mouse.click(*point(page, 400, 400))
        page.keyboard.up("Alt")
        assert selected(page) == ["a red circle"]
        drag(page, (400, 400), (450, 400))
        assert elements_of(page)[0]["bbox"][1] > 120, "what is selected is moved, although another lies over it"

    def test_locked_boxes_let_clicks_through_and_stay(self, page: Any) -> None:
        page.click("[aria-label='Lock a blue square']")
        page.mouse.click(*point(page, 400, 400))
        assert selected(page) == ["a red circle"]
        choose(page, "a blue square")
        for key in ("ArrowLeft", "Delete"):
            page.keyboard.press(key)
        assert elements_of(page) == [RED, BLUE]

    def test_duplicates_deletes_and_orders(self, page: Any) -> None:
        choose(page, "a red circle")
        page.keyboard.press("Control+d")
        assert [one["desc"] for one in elements_of(page)] == ["a red circle", "a blue square", "a red circle"]
        page.keyboard.press("Shift+{")
        page.keyboard.press("]")
        assert elements_of(page)[1]["bbox"] != RED["bbox"]
        page.keyboard.press("Delete")
        assert elements_of(page) == [RED, BLUE]

    def test_snaps_to_other_boxes_and_to_the_grid(self, page: Any) -> None:
        drag(page, (150, 150), (156 + 200, 150))  # six thousandths beside the other's left edge
        assert elements_of(page)[0]["bbox"][1] == 300
        page.click("#view-grid")
        page.select_option("#grid-step", "100")
        page.click("#view-snap")
        drag(page, (600, 800), (633, 800))
        assert elements_of(page)[1]["bbox"] == [300, 300, 900, 900]
        drag(page, (600, 800), (672, 800))
        assert elements_of(page)[1]["bbox"][1] == 400

    def test_undoes_and_redoes_a_hundred_steps(self, page: Any) -> None:
        choose(page, "a red circle")
        page.evaluate("""async () => {
            const left = document.querySelector(".four [data-name=Left]");
            for (let step = 1; step <= 120; step++) {
                left.value = step / 10;
                left.dispatchEvent(new Event("change"));
                await null;
            }
        }""")
        assert elements_of(page)[0]["bbox"][1] == 120
        page.evaluate("() => { for (let i = 0; i < 130; i++) document.getElementById('undo').click() }")
        assert page.locator("#undo").is_disabled() and elements_of(page)[0]["bbox"][1] == 20
        page.evaluate("() => { for (let i = 0; i < 130; i++) document.getElementById('redo').click() }")
        assert page.locator("#redo").is_disabled() and elements_of(page)[0]["bbox"][1] == 120

    def test_a_drag_is_one_step_of_undo(self, page: Any) -> None:
        drag(page, (150, 150), (300, 300))
        page.keyboard.press("Control+z")
        assert elements_of(page) == [RED, BLUE]

    def test_escape_puts_back_what_is_dragged(self, page: Any) -> None:
        page.mouse.move(*point(page, 150, 150))
        page.mouse.down()
        page.mouse.move(*point(page, 300, 300), steps=3)
        page.keyboard.press("Escape")
        page.mouse.up()
        assert elements_of(page) == [RED, BLUE]

    def test_elements_may_be_without_a_place(self, page: Any) -> None:
        page.click("button:has-text('Without a place')")
        page.keyboard.type("a green star")
        assert elements_of(page)[2] == thing("a green star")
        expect(page.locator(".elements")).to_contain_text("no place")
        page.check("#element-place")
        assert len(elements_of(page)[2]["bbox"]) == 4

    def test_aligns_and_spreads_several(self, page: Any) -> None:
        page.keyboard.press("Control+a")
        page.click("[aria-label='Align left edges']")
        assert [one["bbox"][1] for one in elements_of(page)] == [100, 100]

    def test_words_are_edited_in_the_box(self, page: Any) -> None:
        page.mouse.dblclick(*point(page, 150, 150))
        page.keyboard.press("Control+a")
        page.keyboard.type("a red ring")
        page.keyboard.press("Enter")
        assert elements_of(page)[0]["desc"] == "a red ring"


class TestPanels:
    @pytest.fixture
    def page(self, desk: Any) -> Any:
        page = desk
        open_caption(page, composition(RED))
        return page

    def test_write_the_caption_in_the_order_that_the_model_was_trained_on(self, page: Any) -> None:
        page.get_by_label("Description", exact=True).last.fill("A red circle.")
        page.get_by_label("Background").fill("plain green")
        for kind, keys in (
            ("photo", ["aesthetics", "lighting", "photo", "medium", "color_palette"]),
            ("art_style", ["aesthetics", "lighting", "medium", "art_style", "color_palette"]),
        ):
            page.locator(f"[name=style-kind][value={kind}]").check()
            page.get_by_label("Aesthetics").fill("flat")
            page.get_by_label("Lighting").fill("even")
            page.get_by_label("Medium").fill("graphic design")
            page.get_by_label("Photo" if kind == "photo" else "Art style", exact=True).last.fill("geometric")
            if not page.locator("#style-palette .hex").count():
                page.locator("#style-palette button:has-text('Colour')").click()
            caption = caption_of(page)
            assert list(caption) == ["high_level_description", "style_description", "compositional_deconstruction"]
            assert list(caption["style_description"]) == keys
            assert caption["style_description"][kind] == "geometric"
        expect(page.locator("#json-state")).to_contain_text("Keeps to the schema")

    def test_palettes_hold_as_many_colours_as_the_schema_allows(self, page: Any) -> None:
        choose(page, "a red circle")
        add = page.locator("#element-palette button:has-text('Colour')")
        for _ in range(5):
            add.click()
        expect(add).to_be_disabled()
        page.locator("#element-palette .hex").first.fill("abcdef")
        page.keyboard.press("Tab")
        page.locator("#element-palette button[aria-label^='Remove']").last.click()
        colours = elements_of(page)[0]["color_palette"]
        assert len(colours) == 4 and colours[0] == "#ABCDEF"

    def test_shapes_give_sizes_that_the_model_was_trained_on(self, page: Any, served: Served) -> None:
        low, high = page.evaluate("() => fetch('v1/server').then(r => r.json()).then(s => s.sizes.trained)")
        for shape in ("16:9", "1:2", "3:2"):
            page.locator("#settings select").first.select_option(shape)
            sides = [int(page.input_value(f"[aria-label='{side} in pixels']")) for side in ("Width", "Height")]
            assert all(low <= side <= high and side % 16 == 0 for side in sides)
            stage = page.locator("#stage").bounding_box()
            assert stage["width"] / stage["height"] == pytest.approx(sides[0] / sides[1], rel=0.02)

    def test_settings_reach_the_server(self, page: Any) -> None:
        page.locator("#settings select").first.select_option("2:1")
        page.select_option(STEPS, "own")
        page.get_by_label("Number of steps").fill("3")
        page.get_by_label("Guidance").fill("1.5")
        page.uncheck("#fresh-seed")
        page.get_by_label("Seed", exact=True).fill("77")
        page.keyboard.press("Tab")
        with page.expect_response(lambda response: response.url.endswith("/v1/jobs")) as answer:
            page.click("#generate")
        request = answer.value.json()["request"]
        assert request["num_inference_steps"] == 3 and request["guidance_scale"] == 1.5 and request["seed"] == 77
        page.wait_for_selector("#jobs .job-state[data-status=finished]")

    def test_what_shows_nothing_that_was_meant_is_not_sent(self, page: Any) -> None:
        page.click("summary:has-text('Examples')")
        page.click("#examples button:has-text('Empty canvas')")
        page.click("#generate")
        expect(page.locator(".notice[data-kind=error]").last).to_contain_text("nothing to draw yet")
        open_caption(page, composition({**RED, "bbox": [500, 100, 100, 400]}))
        expect(page.locator("#json-problems li").first).to_be_attached()
        page.click("#generate")
        expect(page.locator(".notice[data-kind=error]").last).to_contain_text("A box is not where it seems")
        expect(page.locator("#jobs .job")).to_have_count(0)

    def test_words_typed_into_a_box_stay_however_it_is_left(self, page: Any) -> None:
        for number, key in enumerate(("Enter", "Escape")):
            page.locator("#stage").focus()
            page.keyboard.press("Shift+O")
            page.keyboard.type(f"words {number}")
            page.keyboard.press(key)
            assert (
                elements_of(page)[-1]["desc"] == f"words {number}" or elements_of(page)[0]["desc"] == f"words {number}"
            )

    def test_an_error_of_the_server_stands_at_its_field(self, page: Any) -> None:
        page.get_by_label("Width in pixels").fill("100")
        page.keyboard.press("Tab")
        expect(page.locator("#size-problem")).to_contain_text("multiple of 16")
        page.click("#generate")
        expect(page.locator(".notice[data-kind=error]")).to_be_visible()
        expect(page.locator("#jobs .job")).to_have_count(0)


class TestJson:
    @pytest.fixture
    def page(self, desk: Any) -> Any:
        page = desk
        open_caption(page, composition(RED, BLUE))
        page.click("[data-panel=json]")
        return page

    def test_what_is_typed_moves_the_box_and_what_is_moved_is_written(self, page: Any) -> None:
        text = page.input_value("#json")
        page.fill("#json", text.replace("[100, 100, 500, 500]", "[0, 0, 250, 1000]"))
        box = page.locator(".box").first
        expect(box).to_have_attribute("aria-label", re.compile("0 to 100 % across, 0 to 25 % down"))
        assert page.input_value("#json") == text.replace("[100, 100, 500, 500]", "[0, 0, 250, 1000]")
        page.locator(".element-name", has_text="a red circle").click()
        page.locator("#stage").focus()
        page.keyboard.press("ArrowDown")
        assert "[5, 0, 255, 1000]" in page.input_value("#json")

    def test_a_breach_is_shown_at_its_line_its_field_and_its_box(self, page: Any) -> None:
        text = page.input_value("#json").replace("[300, 300, 900, 900]", "[300, 300, 9000, 900]")
        page.fill("#json", text)
        problem = page.locator("#json-problems li")
        expect(problem).to_contain_text("pixels")
        line = next(number for number, line in enumerate(text.split("\n"), 1) if "9000" in line)
        expect(problem).to_contain_text(f"Line {line}:")
        expect(page.locator("#json-lines .wrong")).to_have_text(str(line))
        choose(page, "a blue square")
        expect(page.locator("#element-box-problem")).to_contain_text("pixels")
        expect(page.locator(".elements")).to_contain_text("1 problem")

    def test_repair_mends_what_is_certain(self, page: Any) -> None:
        text = page.input_value("#json").replace('"desc": "a red', '"description": "a red')
        page.fill("#json", text)
        page.click("#json-repair")
        expect(page.locator(".notice")).to_contain_text("renamed `description` to `desc`")
        assert elements_of(page) == [RED, BLUE]

    def test_text_that_is_no_json_is_kept_and_its_place_is_named(self, page: Any) -> None:
        text = page.input_value("#json").replace('"plain yellow",', '"plain yellow",,')
        page.fill("#json", text)
        expect(page.locator("#json-problems li").first).to_contain_text("stops being JSON")
        assert page.input_value("#json") == text
        assert page.locator(".box").count() == 2

    def test_nothing_is_lost_that_no_field_shows(self, page: Any) -> None:
        odd = composition({**RED, "mood": "calm", "bbox": "100 100 500 500"}, "a cup")  # type: ignore[arg-type]
        page.fill("#json", json.dumps({**odd, "note": [1, {"a": None}]}))
        page.locator("#json").blur()
        caption = caption_of(page)
        assert caption["note"] == [1, {"a": None}]
        assert elements_of(page)[0]["mood"] == "calm" and elements_of(page)[0]["bbox"] == "100 100 500 500"
        assert elements_of(page)[1] == "a cup"


class TestImport:
    @pytest.fixture
    def page(self, desk: Any) -> Any:
        return desk

    def test_takes_json_out_of_other_text(self, page: Any) -> None:
        open_caption(page, f"Here you are {{it is}}:\n```json\n{json.dumps(composition(RED), indent=1)}\n```\nEnjoy!")
        assert caption_of(page) == composition(RED)

    def test_has_broken_json_mended_by_the_server(self, page: Any) -> None:
        open_caption(page, json.dumps(composition(RED))[:-1] + ",}")
        assert caption_of(page) == composition(RED)

    def test_words_are_written_and_shown_before_they_are_taken(self, page: Any) -> None:
        before = caption_of(page)
        page.click("#say")
        page.fill("#words-text", "a blue star on yellow, and a dragon")
        page.click("#words-write")
        told = page.locator("#words-result")
        for line in (
            "a blue star",
            "Background: plain yellow",
            "not understood: dragon",
            "the bundled model's grammar",
        ):
            expect(told).to_contain_text(line)
        assert caption_of(page) == before
        page.click("#words-take")
        page.wait_for_selector(".notice")
        assert [one["desc"] for one in elements_of(page)] == ["a blue star"]
        page.click("#undo")
        assert caption_of(page) == before

    def test_words_that_cannot_be_written_of_are_told(self, page: Any) -> None:
        page.click("#say")
        page.fill("#words-text", "a dragon")
        page.click("#words-write")
        expect(page.locator("#words-result [role=alert]")).to_contain_text("not understood: dragon")
        assert page.is_disabled("#words-take") and not page.is_visible("#words-change-field")
        page.click("#words-close")

    def test_refuses_words_alone(self, page: Any) -> None:
        before = caption_of(page)
        page.click("#import")
        page.fill("#import-text", "a red circle")
        page.click("#import-open")
        expect(page.locator("#import-problem")).to_contain_text("no caption")
        assert page.input_value("#import-text") == "a red circle", "what was pasted is still there to be mended"
        page.click("#import-close")
        assert caption_of(page) == before

    def test_a_dropped_picture_restores_everything(self, visit: Callable[..., Any], tmp_path: Path) -> None:
        first = visit()
        open_caption(first, composition(RED))
        first.locator("#settings select").first.select_option("3:2")
        first.uncheck("#fresh-seed")
        first.get_by_label("Seed", exact=True).fill("4711")
        first.keyboard.press("Tab")
        generate(first)
        first.locator("#gallery .thumb").first.click()
        with first.expect_download() as download:
            first.click("#viewer-png")
        file = tmp_path / download.value.suggested_filename
        download.value.save_as(file)
        assert file.suffix == ".png"

        second = visit()
        drop(second, file)
        second.wait_for_selector(".backdrop[src^='blob:']")
        assert caption_of(second) == composition(RED)
        for label in ("Width in pixels", "Height in pixels", "Seed"):
            field = second.get_by_label(label, exact=True)
            assert field.input_value() == first.get_by_label(label, exact=True).input_value()

    @pytest.mark.parametrize("suffix", [".jpg", ".webp"])
    def test_a_dropped_jpeg_or_webp_restores_its_caption(self, page: Any, tmp_path: Path, suffix: str) -> None:
        file = tmp_path / f"heart{suffix}"
        settings = {"caption": composition(RED), "seed": 4711, "width": 112, "height": 128}
        save_with(settings, file)
        drop(page, file)
        page.wait_for_selector(".backdrop[src^='blob:']")
        assert caption_of(page) == composition(RED)
        assert page.get_by_label("Seed", exact=True).input_value() == "4711"
        assert page.get_by_label("Width in pixels", exact=True).input_value() == "112"

    @pytest.mark.parametrize("suffix", [".png", ".jpg"])
    def test_a_foreign_picture_is_refused_by_name(self, page: Any, tmp_path: Path, suffix: str) -> None:
        file = tmp_path / f"holiday{suffix}"
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0at the sea"
        Image.new("RGB", (8, 8)).save(file, exif=exif)
        drop(page, file)
        expect(page.locator(".notice[data-kind=error]")).to_contain_text(f"holiday{suffix} holds no caption")


def save_with(settings: dict[str, Any], file: Path) -> None:
    """Write a picture with settings, as the program does."""
    image = Image.effect_noise((112, 128), 60).convert("RGB")
    image.info["ideoflow"] = json.dumps({"ideoflow": "0.1", **settings}, ensure_ascii=False)
    save_image(image, file)


def drop(page: Any, file: Path) -> None:
    """Drop a file on the page."""
    transfer = page.evaluate_handle(
        """([name, bytes]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], name, {type: "image/png"}));
            return transfer;
        }""",
        [file.name, list(file.read_bytes())],
    )
    page.dispatch_event("#viewport", "drop", {"dataTransfer": transfer})


class TestJobs:
    @pytest.fixture
    def page(self, desk: Any) -> Any:
        return desk

    def test_cancel_ends_a_job(self, page: Any) -> None:
        slow(page)
        page.click("#generate")
        page.wait_for_selector(".backdrop.preview")
        page.click("#canvas-cancel")
        page.wait_for_selector("#jobs .job-state[data-status=cancelled]")
        expect(page.locator("#canvas-cancel")).to_be_hidden()

    def test_several_run_at_once_and_one_is_watched(self, page: Any) -> None:
        slow(page)
        for _ in range(3):
            page.click("#generate")
            page.wait_for_timeout(100)
        expect(page.locator("#jobs .job")).to_have_count(3)
        expect(page.locator("#jobs .job.watched")).to_have_count(1)
        page.locator("#jobs .job-name").nth(1).click()
        expect(page.locator("#jobs .job").nth(1)).to_have_class(re.compile("watched"))
        cancels = page.locator("#jobs [aria-label^=Cancel]")
        for left in (2, 1, 0):
            cancels.first.click()
            expect(cancels).to_have_count(left)

    def test_a_job_followed_again_goes_on_after_the_last_event_that_was_seen(self, page: Any) -> None:
        slow(page)
        page.click("#generate")
        page.wait_for_selector(".backdrop.preview")
        page.click("#clear-picture")
        with page.expect_request("**/events") as request:
            page.locator("#jobs .job-name").first.click()
        assert int(request.value.headers["last-event-id"]) > 1
        page.wait_for_selector(".backdrop.preview")
        page.click("#canvas-cancel")
        page.wait_for_selector("#jobs .job-state[data-status=cancelled]")

    def test_every_picture_of_a_job_can_be_looked_at(self, page: Any) -> None:
        page.get_by_role("spinbutton", name="Pictures").fill("2")
        page.keyboard.press("Tab")
        generate(page)
        thumbs = page.locator(".job-pictures .thumb")
        expect(thumbs).to_have_count(2)
        thumbs.nth(0).click()
        expect(thumbs.nth(0)).to_have_attribute("aria-pressed", "true")
        page.wait_for_timeout(300)
        first = page.locator(".backdrop").get_attribute("src")
        thumbs.nth(1).click()
        expect(page.locator(".backdrop")).not_to_have_attribute("src", first)


class TestRedraw:
    @pytest.fixture
    def page(self, desk: Any) -> Any:
        generate(desk)
        return desk

    def change(self, page: Any) -> dict[str, Any]:
        """Redraw, and wait until the new picture is behind the boxes; the job."""
        old = page.locator(".backdrop").get_attribute("src")
        with page.expect_response(lambda one: one.request.method == "POST" and one.url.endswith("/v1/jobs")) as sent:
            page.click("#redraw")
        drawn = "old => ![old, undefined].includes(document.querySelector('.backdrop:not(.preview)')?.src)"
        until(page, drawn, old)
        page.wait_for_selector("#compare-row:not([hidden])")
        return dict(sent.value.json())

    def test_what_has_changed_is_drawn_anew_and_shown_beside_what_it_was(self, page: Any) -> None:
        expect(page.locator("#redraw")).to_be_hidden()
        page.click("[data-panel=json]")
        page.fill("#json", page.input_value("#json").replace("a red circle", "a green star"))
        expect(page.locator("#redraw")).to_have_text("Redraw changes")
        job = self.change(page)

        assert job["request"]["edit"]["how"] == "redraw"
        expect(page.locator("#redraw")).to_be_hidden()
        page.locator("#compare").fill("50")
        assert "50%" in page.locator(".before").evaluate("node => node.style.clipPath")

    def test_selected_boxes_are_drawn_anew_where_nothing_has_changed(self, page: Any) -> None:
        choose(page, "red")
        expect(page.locator("#redraw")).to_have_text("Redraw selection")
        job = self.change(page)

        assert job["request"]["edit"]["how"] == "inpaint"
        assert job["request"]["edit"]["boxes"] == [elements_of(page)[0]["bbox"]]

    def test_what_is_painted_is_drawn_anew_and_nothing_else(self, page: Any) -> None:
        page.click("#tool-brush")
        page.locator("#brush-size").fill("150")
        drag(page, (200, 200), (400, 200))
        expect(page.locator("#redraw")).to_have_text("Redraw painted")
        page.locator("#brush-size").fill("400")
        page.click("#brush-erase")
        drag(page, (150, 200), (450, 200))
        expect(page.locator("#redraw")).to_be_hidden()
        page.click("#brush-erase")
        drag(page, (800, 800), (900, 800))
        page.click("#brush-clear")
        expect(page.locator("#redraw")).to_be_hidden()
        drag(page, (200, 200), (400, 200))
        job = self.change(page)

        mask = pixels(base64.b64decode(job["request"]["edit"]["mask"]))[..., 0]
        old, new = (
            pixels(page.request.get(f"{page.url}v1/jobs/{id}/pictures/0").body())
            for id in (job["request"]["edit"]["job"], job["id"])
        )
        assert mask.shape == old.shape[:2]
        across, down = mask.shape[1] * 3 // 10, mask.shape[0] * 2 // 10
        assert mask[down, across] == 255 and mask[-1, -1] == 0
        assert (old[mask == 0] == new[mask == 0]).all() and (old != new).any()
        expect(page.locator("#redraw")).to_be_hidden()

    def test_changes_of_changes_are_shown_as_a_tree(self, page: Any) -> None:
        def look_at(job: dict[str, Any]) -> None:
            page.click(f"#gallery [data-key='{job['id']}-0'] .thumb")
            page.wait_for_selector("#viewer[open] #viewer-image[src]")

        choose(page, "red")
        first = self.change(page)
        second = self.change(page)
        assert second["request"]["edit"]["job"] == first["id"] != first["request"]["edit"]["job"]
        look_at(second)
        tree = page.locator("#viewer-tree .thumb")
        expect(tree).to_have_count(3)
        expect(tree.nth(2)).to_have_attribute("aria-current", "true")
        tree.first.click()
        expect(tree.first).to_have_attribute("aria-current", "true")
        page.click("#viewer-open")
        choose(page, "red")
        branch = self.change(page)
        look_at(branch)

        assert branch["request"]["edit"]["job"] == first["request"]["edit"]["job"]
        expect(page.locator("#viewer-tree > ul > li > ul > li")).to_have_count(2)
        page.click("#viewer-close")


def pixels(file: bytes) -> Any:
    """The pixels of a picture file."""
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def slow(page: Any) -> None:
    """Ask for so many steps that a job is still running whatever is done next."""
    page.select_option(STEPS, "own")
    page.get_by_label("Number of steps").fill("100")
    page.keyboard.press("Tab")


class TestGallery:
    @pytest.fixture
    def page(self, desk: Any) -> Any:
        page = desk
        open_caption(page, composition(thing("a red heart of the gallery", 200, 200, 800, 800)))
        generate(page)
        return page

    def test_opens_a_picture_again_with_its_boxes(self, page: Any) -> None:
        drawn = caption_of(page)
        page.click("summary:has-text('Examples')")
        page.click("#examples button:has-text('Empty canvas')")
        assert elements_of(page) == []
        page.locator("#gallery .thumb").first.click()
        page.check("#viewer-compare")
        expect(page.locator("#viewer-boxes .box")).to_have_count(1)
        page.click("#viewer-open")
        assert caption_of(page) == drawn
        page.wait_for_selector(".backdrop[src^='blob:']")
        assert not page.is_checked("#fresh-seed")

    def test_is_searched_by_words(self, page: Any) -> None:
        page.fill("#gallery-search", "of the gallery")
        expect(page.locator("#gallery .thumb").first).to_have_attribute(
            "aria-label", re.compile("heart of the gallery")
        )
        page.fill("#gallery-search", "zebra crossing")
        expect(page.locator("#gallery .thumb")).to_have_count(0)
        expect(page.locator("#gallery-none")).to_contain_text("No picture")

    def test_gives_seed_and_caption_and_deletes(self, page: Any) -> None:
        thumb = page.locator("#gallery .thumb").first
        label = thumb.get_attribute("aria-label")
        thumb.click()
        page.click("#viewer-seed")
        assert page.input_value("[aria-label=Seed]") == re.search(r"seed (\d+)", label)[1]
        with page.expect_download() as download:
            page.click("#viewer-json")
        assert json.loads(Path(download.value.path()).read_text("utf-8")) == caption_of(page)
        page.click("#viewer-delete")
        page.click("#confirm-yes")
        expect(page.locator(f'#gallery [aria-label="{label}"]')).to_have_count(0)


class TestNothingIsLost:
    def test_on_reload(self, page: Any) -> None:
        open_caption(page, composition(RED, BLUE))
        choose(page, "a red circle")
        page.keyboard.press("ArrowLeft")
        generate(page)
        before = caption_of(page)
        page.reload()
        page.wait_for_selector("body[data-ready]")
        assert caption_of(page) == before
        page.wait_for_selector(".backdrop:not(.preview)[src^='blob:']")
        page.click("#undo")
        assert elements_of(page) == [RED, BLUE]

    def test_while_a_job_runs(self, page: Any) -> None:
        slow(page)
        page.click("#generate")
        page.wait_for_selector(".backdrop.preview")
        page.reload()
        page.wait_for_selector(".backdrop.preview")
        page.click("#canvas-cancel")
        page.wait_for_selector("#jobs .job-state[data-status=cancelled]")

    def test_between_two_tabs_which_share_the_clipboard_and_the_gallery(self, page: Any) -> None:
        open_caption(page, composition(RED))
        page.wait_for_timeout(400)
        other = page.context.new_page()
        other.goto(page.url)
        other.wait_for_selector("body[data-ready]")
        assert caption_of(other) == composition(RED), "a new tab goes on with the last work"
        open_caption(other, composition(BLUE))
        assert caption_of(page) == composition(RED)
        other.keyboard.press("Control+a")
        other.keyboard.press("Control+c")
        page.bring_to_front()
        page.locator("#stage").focus()
        page.keyboard.press("Control+v")
        until(page, "document.querySelectorAll('.box').length === 2")
        assert elements_of(page)[1]["desc"] == BLUE["desc"]
        page.click("#generate")
        page.wait_for_selector("#jobs .job-state[data-status=finished]")
        newest = page.locator("#gallery li").first.get_attribute("data-key")
        expect(other.locator("#gallery li").first).to_have_attribute("data-key", newest)

    def test_when_the_server_restarts(self, visit: Callable[..., Any], tmp_path: Path) -> None:
        server = Served(tmp_path / "data")
        server.start()
        try:
            page = visit(server.address)
            open_caption(page, composition(RED))
            page.select_option(STEPS, "own")
            page.get_by_label("Number of steps").fill("60")
            page.keyboard.press("Tab")
            page.click("#generate")
            page.wait_for_selector(".backdrop.preview")
            server.stop()
            expect(page.locator("#away")).to_be_visible()
            assert caption_of(page) == composition(RED)
            server.start()
            expect(page.locator("#away")).to_be_hidden()
            page.wait_for_selector("#jobs .job-state[data-status=finished]")
            page.wait_for_selector(".backdrop:not(.preview)[src^='blob:']")
        finally:
            server.stop()

    def test_where_the_queue_is_full(self, visit: Callable[..., Any], tmp_path: Path) -> None:
        server = Served(tmp_path / "data", max_queue=1)
        server.start()
        try:
            page = visit(server.address)
            open_caption(page, composition(RED))
            slow(page)
            page.click("#generate")
            page.wait_for_selector(".backdrop.preview")
            page.click("#generate")
            expect(page.locator("#jobs")).to_contain_text("The queue is full")
            page.locator("#jobs .job:has(.job-state[data-status=running]) [aria-label^=Cancel]").click()
            expect(page.locator("#jobs .job-state[data-status=running]")).to_have_count(1)
            expect(page.locator("#jobs")).not_to_contain_text("The queue is full")
        finally:
            server.stop()


class TestEverybody:
    def test_the_keyboard_alone_is_enough(self, page: Any) -> None:
        page.click("summary:has-text('Examples')")
        page.click("#examples button:has-text('Empty canvas')")
        page.locator("#stage").focus()
        page.keyboard.press("Shift+O")
        page.keyboard.type("a red circle")
        page.keyboard.press("Enter")
        box = elements_of(page)[0]["bbox"]
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("Shift+ArrowUp")
        page.keyboard.press("Alt+ArrowRight")
        assert elements_of(page)[0]["bbox"] == [box[0] - 50, box[1] - 5, box[2] - 50, box[3]]
        page.keyboard.press("Shift+T")
        page.keyboard.type("HI")
        page.keyboard.press("Enter")
        page.keyboard.press("Shift+Tab")
        assert selected(page) == ["a red circle"], "Tab goes from box to box"
        page.keyboard.press("l")
        expect(page.locator(".box.locked")).to_have_count(1)
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("#jobs .job-state[data-status=finished]")
        page.keyboard.press("?")
        expect(page.locator("#help")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#help")).to_be_hidden()

    def test_a_phone_shows_everything(self, visit: Callable[..., Any]) -> None:
        page = visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        for panel, sight in (
            ("words", "#element-fields"),
            ("json", "#json"),
            ("gallery", "#gallery-search"),
            ("settings", "#settings-fields"),
        ):
            page.tap(f"[data-panel={panel}]")
            expect(page.locator(sight)).to_be_visible()
            expect(page.locator("#generate")).to_be_in_viewport()
        page.tap("#tool-obj")
        page.touchscreen.tap(*point(page, 500, 500))
        page.keyboard.type("a green star")
        page.keyboard.press("Enter")
        assert elements_of(page)[-1]["desc"] == "a green star"
        page.tap("#tool-obj")
        with_a_finger(page, (50, 50), (320, 250))
        page.keyboard.type("a blue ring")
        page.keyboard.press("Enter")
        assert near(elements_of(page)[-1]["bbox"], 50, 50, 250, 320)
        assert page.evaluate("[scrollX, scrollY]") == [0, 0], "a finger on the canvas draws, and does not scroll"
        page.tap("#generate")
        page.wait_for_selector(".backdrop:not(.preview)[src^='blob:']")

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_axe_finds_nothing_serious(self, visit: Callable[..., Any], scheme: str) -> None:
        axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not here")
        page = visit(color_scheme=scheme)
        open_caption(page, composition(RED, {**BLUE, "bbox": [1, 2, 9000, 4]}))
        generate(page)
        choose(page, "a red circle")

        def check(where: str) -> None:
            found = axe.Axe().run(page).response["violations"]
            grave = [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]
            assert grave == [], where

        check("the page")
        page.click("[data-panel=json]")
        page.wait_for_selector("#json-problems li")
        check("the JSON")
        page.locator("#gallery .thumb").first.click()
        check("a picture of the gallery")
        page.click("#viewer-close")
        page.click("#show-help")
        check("the help")

    def test_the_key_is_asked_for_once(self, visit: Callable[..., Any], tmp_path: Path) -> None:
        server = Served(tmp_path / "data", api_keys=("a key of its own"[2:].replace(" ", "-"),))
        server.start()
        try:
            page = visit(server.address, ready=False)
            page.fill("#key", "wrong-key")
            page.keyboard.press("Enter")
            expect(page.locator("#key-refused")).to_be_visible()
            page.fill("#key", "key-of-its-own")
            page.keyboard.press("Enter")
            page.wait_for_selector("body[data-ready]")
            generate(page)
            page.reload()
            page.wait_for_selector("body[data-ready]")
            page.wait_for_selector("#gallery img[src^='blob:']")
        finally:
            server.stop()


@pytest.fixture(scope="module")
def call(browser: Any, served: Served) -> Iterator[Callable[..., Any]]:
    """Evaluates an expression with `m`, a module of the page, and `given`, the arguments."""
    page = browser.new_page()
    page.goto(served.address)

    def call(module: str, expression: str, *arguments: Any) -> Any:
        return page.evaluate(
            f"async given => {{ const m = await import('/studio/{module}.js'); return {expression} }}",
            list(arguments),
        )

    yield call
    page.close()


class TestModules:
    """The parts that need no page, called in the browser as they are."""

    @pytest.mark.parametrize(
        "caption",
        [json.loads(path.read_text("utf-8")) for path in sorted(EXAMPLES.glob("*.json"))]
        + [
            {},
            {"note": 1},
            composition(),
            composition(thing("x"), {"type": "text", "bbox": [0, 0, 1, 1], "text": "a\nb", "desc": ""}),
            composition({"type": "object", "desc": 3, "bbox": [1, 2, 3]}, 5, None, ["x"]),  # type: ignore[arg-type]
            {"compositional_deconstruction": {"background": 4, "elements": {"a": 1}, "more": True}},
            {"style_description": {"aesthetics": "a", "lighting": "b", "photo": "c", "medium": "d", "mood": "e"}},
            {"style_description": "flat", "compositional_deconstruction": []},
        ],
    )
    def test_a_caption_opened_and_written_is_the_same(self, call: Callable[..., Any], caption: Any) -> None:
        once = call("layout", "m.toCaption(m.fromCaption(given[0]))", caption)
        for key, value in caption.items():
            if key != "compositional_deconstruction" or not isinstance(value, dict):
                assert once[key] == value
        assert call("layout", "m.toCaption(m.fromCaption(given[0]))", once) == once
        if "compositional_deconstruction" in caption and isinstance(caption["compositional_deconstruction"], dict):
            assert once["compositional_deconstruction"] == caption["compositional_deconstruction"]

    def test_keys_are_put_in_order(self, call: Callable[..., Any]) -> None:
        mixed = {
            "compositional_deconstruction": {
                "elements": [{"desc": "x", "bbox": [0, 0, 9, 9], "type": "obj"}],
                "background": "",
            },
            "high_level_description": "y",
        }
        text = call("layout", "JSON.stringify(m.toCaption(m.fromCaption(given[0])))", mixed)
        assert text == (
            '{"high_level_description":"y","compositional_deconstruction":{"background":"","elements":'
            '[{"type":"obj","bbox":[0,0,9,9],"desc":"x"}]}}'
        )

    @pytest.mark.parametrize(
        "box, grid, expected",
        [
            ([103, 403, 203, 503], 0, {"dx": -3, "dy": -3}),  # to the other's left edge and top
            ([120, 420, 220, 520], 0, {"dx": 0, "dy": 0}),  # nothing in reach
            ([445, 700, 545, 800], 0, {"dx": 0, "dy": 5}),  # its middle to the picture's
            ([131, 612, 231, 712], 50, {"dx": -12, "dy": 19}),  # to the grid
        ],
    )
    def test_a_moved_box_snaps(self, call: Callable[..., Any], box: Any, grid: int, expected: Any) -> None:
        found = call(
            "snapping", "m.snapMove(given[0], m.linesOf([[100, 400, 300, 560]]), {x: 6, y: 6}, given[1])", box, grid
        )
        assert {"dx": found["dx"], "dy": found["dy"]} == expected

    def test_the_history_keeps_a_hundred_steps_and_counts_a_burst_as_one(self, call: Callable[..., Any]) -> None:
        assert call(
            "history",
            """(() => { const history = new m.History(100);
                for (let i = 0; i < 150; i++) history.record(i);
                for (let i = 150; i < 160; i++) history.record(i, "word");
                const undone = []; let now = 160;
                for (let state; (state = history.undo(now)) !== undefined; now = state) undone.push(state);
                return [undone.length, undone[0], undone.at(-1), history.redo(now)]; })()""",
        ) == [100, 150, 51, 52]

    @pytest.mark.parametrize("form", ["iTXt", "compressed iTXt", "tEXt", "none", "cut off"])
    def test_a_png_is_read_as_pillow_writes_it(self, call: Callable[..., Any], tmp_path: Path, form: str) -> None:
        text = json.dumps({"caption": "ä " * 500 if "iTXt" in form else "a " * 500}, ensure_ascii=False)
        info = PngInfo()
        info.add_text("Title", "something else")
        if "iTXt" in form:
            info.add_itxt("ideoflow", text, zip=form.startswith("compressed"))
        elif form != "none":
            info.add_text("ideoflow", text)
        Image.new("RGB", (16, 16)).save(tmp_path / "picture.png", pnginfo=info)
        data = (tmp_path / "picture.png").read_bytes()
        if form == "cut off":
            data = data[:300]
        found = call("png", "await m.textOf(new Uint8Array(given[0]))", list(data))
        assert found == (None if form in ("none", "cut off") else text)

    @pytest.mark.parametrize("suffix", [".jpg", ".webp"])
    def test_exif_is_read_as_we_write_it(self, call: Callable[..., Any], tmp_path: Path, suffix: str) -> None:
        file = tmp_path / f"picture{suffix}"
        caption = composition(thing("ÄÖ “quoted” 漢字", 1, 2, 300, 400))
        save_with({"caption": caption, "seed": 4711}, file)
        data = list(file.read_bytes())
        found = json.loads(call("exif", "m.commentOf(new Uint8Array(given[0]))", data))
        assert found["caption"] == caption and found["seed"] == 4711
        cuts = list(range(0, 400, 7))
        told = call("exif", "given[1].map((cut) => m.commentOf(new Uint8Array(given[0].slice(0, cut))))", data, cuts)
        assert len(told) == len(cuts) and all(one is None or isinstance(one, str) for one in told)

    def test_events_are_read_however_they_are_cut(self, call: Callable[..., Any]) -> None:
        sent = ': still here\n\nid: 1\nevent: step\ndata: {"a":\ndata: "ü"}\n\nid: 2\r\nevent: done\r\ndata: {}\r\n\r\n'
        expected = [{"id": "1", "type": "step", "data": {"a": "ü"}}, {"id": "2", "type": "done", "data": {}}]
        for size in (1, 2, 3, 7, 1000):
            found = call(
                "event-stream",
                """await (async () => { const bytes = new TextEncoder().encode(given[0]); const found = [];
                    const body = new ReadableStream({ start(c) {
                        for (let i = 0; i < bytes.length; i += given[1]) c.enqueue(bytes.slice(i, i + given[1]));
                        c.close(); } });
                    for await (const event of m.eventsOf(body)) found.push(event);
                    return found; })()""",
                sent,
                size,
            )
            assert found == expected

    @pytest.mark.parametrize(
        "text, expected",
        [
            ('{"a": 1}', {"a": 1}),
            ('so {much} for {"a": "}{"} and more', {"a": "}{"}),
            ('```json\n{"a": [{"b": 2}]}\n```', {"a": [{"b": 2}]}),
            ("no {braces", None),
            ('{"a": 1', None),
            ('{"a": {"b": 1},}', None),  # a part of what is broken is not taken for the whole
        ],
    )
    def test_json_is_found_in_text(self, call: Callable[..., Any], text: str, expected: Any) -> None:
        assert call("json-text", "m.objectWithin(given[0]) ?? null", text) == expected

    def test_places_in_json_are_named_as_the_checks_name_them(self, call: Callable[..., Any]) -> None:
        text = json.dumps(composition(RED, BLUE), indent=2)
        places = call("json-text", "Object.fromEntries(m.placesOf(given[0]).places)", text)
        place = places["compositional_deconstruction.elements[1].bbox"]
        assert json.loads(text[place : text.index("]", place) + 1]) == BLUE["bbox"]

    def test_text_is_written_as_the_examples_are(self, call: Callable[..., Any]) -> None:
        for path in sorted(EXAMPLES.glob("*.json")):
            text = path.read_text("utf-8")
            assert call("json-text", "m.pretty(given[0])", json.loads(text)) == text.rstrip("\n")


def test_the_page_names_every_module_that_its_first_paint_needs() -> None:
    """A module that is not named is found late, one round trip after another."""
    named = set(re.findall(r'href="studio/([\w-]+)\.js"', (STUDIO / "index.html").read_text("utf-8"))) | {"main"}
    needed, todo = set(), {"main"}
    while todo:
        module = todo.pop()
        needed.add(module)
        text = (STUDIO / f"{module}.js").read_text("utf-8")
        todo |= set(re.findall(r'^(?:import|\}) .*?from "\./([\w-]+)\.js";', text, re.MULTILINE)) - needed
    assert named == needed


def test_nothing_is_written_into_the_page_that_the_policy_forbids() -> None:
    text = (STUDIO / "index.html").read_text("utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)
    assert not re.search(r"(?:href|src)=\"(?:https?:)?//", text)
    assert len(zlib.compress(b"".join(path.read_bytes() for path in STUDIO.iterdir()))) < 80_000
