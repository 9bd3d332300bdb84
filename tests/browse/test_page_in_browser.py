"""The page in headless Chromium: nothing of a model runs, keys and links work, phone, contrast."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from browsed_run import Browsed

from perpo_pipeline.browse.server import listen, make_app

pytestmark = pytest.mark.browser
WIDE, PHONE = {"width": 1400, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def address(boxes: Browsed) -> Iterator[str]:
    """The page of the run with hostile answers, served by a thread."""
    sock = listen("127.0.0.1", 0)
    config = uvicorn.Config(
        make_app(boxes.artifacts, boxes.views), log_level="error", lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    sock.close()


@pytest.fixture
def open_page(chromium: Any, address: str) -> Iterator[Any]:
    """Open an address of the page; anything that the browser complains of fails the test."""
    contexts, complaints = [], []

    def open_one(path: str, viewport: Any = WIDE, scheme: str = "light", **options: Any) -> Any:
        context = chromium.new_context(viewport=viewport, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(f"dialog {dialog.message}"))
        page.goto(address + path)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert not complaints


@pytest.mark.parametrize(
    ("path", "viewport", "scheme"),
    [("/samples?sort=mean", WIDE, "light"), ("/predictions/test?prompt={}", PHONE, "dark")],
    ids=["wide-light", "phone-dark"],
)
def test_axe_finds_nothing_serious_and_nothing_is_wider_than_the_screen(
    open_page: Any, boxes: Browsed, path: str, viewport: Any, scheme: str
) -> None:
    import axe_playwright_python

    prompt = boxes.views["predictions/test"].rows["prompt_id"][1]
    page = open_page(path.format(prompt), viewport, scheme, bypass_csp=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    page.add_script_tag(path=Path(axe_playwright_python.__file__).with_name("axe.min.js"))
    found = page.evaluate("axe.run(document)")
    bad = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
    where = [(one["id"], [node["html"][:120] for node in one["nodes"][:3]]) for one in bad]
    assert not bad, json.dumps(where, indent=1)
    assert "color-contrast" in {one["id"] for one in found["passes"]}


def test_keys_walk_over_the_prompts_and_each_has_its_address(
    open_page: Any, boxes: Browsed, address: str
) -> None:
    ids = boxes.views["samples"].rows["prompt_id"].to_list()
    page = open_page("/samples")
    page.keyboard.press("ArrowRight")
    page.wait_for_url(f"**/samples?prompt={ids[1]}")
    page.keyboard.press("j")
    page.wait_for_url(f"**prompt={ids[2]}")
    assert page.locator("tr.now").count() == 1
    assert page.locator("#question").inner_text() == page.locator("tr.now th a").inner_text()
    page.keyboard.press("k")
    page.wait_for_url(f"**prompt={ids[1]}")
    page.go_back()
    page.wait_for_url(f"**prompt={ids[2]}")
    page.wait_for_selector(f"#detail code:has-text('{ids[2]}')")
    page.keyboard.press("/")
    page.keyboard.type(">7<")
    page.keyboard.press("Enter")
    page.wait_for_url("**/samples?q=*")
    page.wait_for_selector(".count:has-text('1 of 60')")
    assert "7" in page.locator("#question").inner_text()


def test_the_table_keeps_its_place_and_a_column_sorts(open_page: Any, boxes: Browsed) -> None:
    page = open_page("/samples")
    table = page.locator(".table")
    table.evaluate("one => { one.scrollTop = 700 }")
    page.locator("tbody tr:nth-child(20) th a").click()
    page.wait_for_selector("#detail :text('20 of 60')")
    assert abs(table.evaluate("one => one.scrollTop") - 700) < 200
    page.get_by_role("link", name="mean").click()
    page.wait_for_url("**sort=-mean*")
    page.wait_for_selector("th[aria-sort=descending]")
    shown = [float(text) for text in page.locator("#rows tbody td:last-child").all_inner_texts()]
    assert shown == sorted(shown, reverse=True) and len(set(shown)) > 3


def test_the_pointer_on_an_answer_shows_its_box_alone(open_page: Any) -> None:
    page = open_page("/samples?sort=-margin")
    alone = page.locator(".one[data-rank='1']")
    assert alone.evaluate("one => getComputedStyle(one).visibility") == "hidden"
    page.locator(".ranked tr[data-rank='1'] th").hover()
    assert alone.evaluate("one => getComputedStyle(one).visibility") == "visible"
    size = "one => [one.getBoundingClientRect().width, one.getBoundingClientRect().height]"
    picture, marks = (page.locator(s).first.evaluate(size) for s in (".picture img", ".all .marks"))
    assert picture == pytest.approx(marks, abs=1) and picture[0] > 300


def test_a_keyboard_keeps_its_place_and_shows_a_box_alone(open_page: Any, boxes: Browsed) -> None:
    page = open_page("/samples")
    has_focus = "document.activeElement.%s"
    page.locator("tbody tr:nth-child(3) th a").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#detail :text('3 of 60')")
    question = page.locator("#question").inner_text()
    assert page.evaluate(has_focus % "innerText") == question
    page.get_by_role("link", name="mean").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("th[aria-sort=descending]")
    assert "mean" in page.evaluate(has_focus % "innerText")
    page.keyboard.press("/")
    page.keyboard.type(">7<")
    page.keyboard.press("Enter")
    page.wait_for_selector(".count:has-text('1 of 60')")
    assert page.evaluate(has_focus % "className") == "table"
    page.locator("a.skip").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**#detail")
    page.wait_for_timeout(300)
    assert page.evaluate(has_focus % "id") == "detail"
    row = page.locator(".ranked tr[tabindex]").first
    for _ in range(8):  # the links, and what is folded
        page.keyboard.press("Tab")
        if row.evaluate("one => one === document.activeElement"):
            break
    alone = page.locator(f".one[data-rank='{row.get_attribute('data-rank')}']")
    assert alone.evaluate("one => getComputedStyle(one).visibility") == "visible"


def test_without_scripts_links_and_forms_are_pages(open_page: Any, boxes: Browsed) -> None:
    page = open_page("/samples", java_script_enabled=False)
    page.locator("a[rel=next]").click()
    assert "2 of 60" in page.locator(".walk").inner_text()
    page.locator("input[name=q]").fill(">9<")
    page.get_by_role("button", name="Apply").click()
    assert "1 of 60" in page.locator(".count").inner_text()


def test_a_phone_shows_the_table_or_the_prompt(open_page: Any) -> None:
    page = open_page("/samples", PHONE, has_touch=True)
    assert page.locator("#rows").is_visible() and not page.locator("#detail").is_visible()
    page.locator("tbody tr:nth-child(3) th a").click()
    page.wait_for_selector("#detail", state="visible")
    assert not page.locator("#rows").is_visible()
    page.get_by_role("link", name="all prompts").click()
    page.wait_for_selector("#rows", state="visible")
    assert not page.locator("select[name=sort]").is_visible()
    page.locator("label.more-filters").click()
    assert page.locator("select[name=sort]").is_visible()
