"""The page in headless Chromium, without scripts: keyboard, phone, contrast, alt texts."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from synthetic_run import make_synthetic_run

from perpo_pipeline.report.write_report import report

pytestmark = pytest.mark.browser
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
GROUNDING, TEXTS = "grounding", "ocr"
FOCUS = """() => {
    const e = document.activeElement, r = e.getBoundingClientRect(), s = getComputedStyle(e);
    return {tag: e.tagName, top: r.top + scrollY, nav: !!e.closest('nav'),
        seen: r.bottom > 0 && r.top < innerHeight,
        outline: s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 1};
}"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The pages of a run on boxes and of a run on pages of text, with a long question."""
    root = tmp_path_factory.mktemp("pages")
    few = {"methods": ("perpo", "dpo"), "pictures": 8, "lists": 2, "num_resamples": 100}
    boxes = make_synthetic_run(root / "boxes", num_prompts=24, **few)
    words = "Read page {index}: " + "a rather long line of text " * 30
    drawn = {"task": TEXTS, "pages": True, "expression": words, "min_margin": 0.04}
    texts = make_synthetic_run(root / "texts", num_prompts=12, **drawn, **few)
    return {GROUNDING: report(boxes).path, TEXTS: report(texts).path}


@pytest.fixture
def open_page(chromium, pages):
    """Open one of the pages; scripts are off unless a test puts its own into the page."""
    contexts = []

    def open_one(which, viewport=WIDE, *, scripts=False, scheme="light"):
        context = chromium.new_context(
            viewport=viewport,
            java_script_enabled=scripts,
            color_scheme=scheme,
            has_touch=viewport is PHONE,
            reduced_motion="reduce",
        )
        contexts.append(context)
        page = context.new_page()
        page.goto((pages[which] / "report.html").as_uri())
        return page

    yield open_one
    for context in contexts:
        context.close()


@pytest.mark.parametrize("which", [GROUNDING, TEXTS])
@pytest.mark.parametrize(
    ("viewport", "scheme"), [(WIDE, "light"), (PHONE, "dark")], ids=["wide-light", "phone-dark"]
)
def test_axe_finds_nothing_serious(open_page, which, viewport, scheme):
    import axe_playwright_python

    page = open_page(which, viewport, scripts=True, scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    page.add_script_tag(path=Path(axe_playwright_python.__file__).with_name("axe.min.js"))
    found = page.evaluate("axe.run(document)")
    bad = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
    where = [(one["id"], [node["html"][:120] for node in one["nodes"][:3]]) for one in bad]
    assert not bad, json.dumps(where, indent=1)
    assert {"color-contrast", "svg-img-alt"} <= {one["id"] for one in found["passes"]}


@pytest.mark.parametrize("which", [GROUNDING, TEXTS])
@pytest.mark.parametrize("width", [390, 320])
def test_a_phone_scrolls_in_one_direction(open_page, which, width):
    page = open_page(which, {"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_the_contents_stay_beside_a_wide_page_and_stand_above_it_on_a_phone(open_page):
    page = open_page(GROUNDING)
    page.mouse.wheel(0, 3000)
    page.wait_for_timeout(200)
    assert page.locator("nav").bounding_box()["y"] >= 0
    phone = open_page(GROUNDING, PHONE)
    nav, main = (phone.locator(tag).bounding_box() for tag in ("nav", "main"))
    assert nav["y"] + nav["height"] <= main["y"] + 1


def test_every_entry_of_the_contents_leads_to_its_section(open_page):
    page = open_page(GROUNDING)
    ids = [a.get_attribute("href")[1:] for a in page.locator("nav a").all()]
    assert {"headline", "table", "pictures", "lists", "training", "glossary"} <= set(ids)
    assert all(page.locator(f"section#{one}").count() == 1 for one in ids)
    sections = [one.get_attribute("id") for one in page.locator("main section").all()]
    assert ids == sections


def test_the_tab_key_goes_down_the_page_and_the_focus_can_be_seen(open_page):
    page = open_page(GROUNDING)
    tops, kinds = [], []
    for _ in range(60):
        page.keyboard.press("Tab")
        focus = page.evaluate(FOCUS)
        assert focus["tag"] != "BODY" and focus["seen"] and focus["outline"], focus
        kinds.append(focus["tag"])
        if not focus["nav"]:
            tops.append(focus["top"])
    assert kinds[0] == "A" and {"A", "BUTTON", "INPUT"} <= set(kinds)
    rows = [top for top in tops[1:] if top > 0]
    assert all(later >= earlier - 400 for earlier, later in pairwise(rows))


@pytest.mark.parametrize(
    ("which", "section"), [(GROUNDING, "pictures"), (GROUNDING, "lists"), (TEXTS, "pictures")]
)
def test_a_picture_is_enlarged_and_closed_by_keyboard(open_page, which, section):
    page = open_page(which)
    button = page.locator(f"#{section} button.picture").first
    large = page.locator(f"#{button.get_attribute('popovertarget')}")
    assert not large.is_visible()
    button.focus()
    page.keyboard.press("Enter")
    assert large.is_visible()
    picture = large.locator(".picture").bounding_box()
    assert picture["width"] > button.bounding_box()["width"]
    focused = "document.activeElement.textContent"
    assert page.evaluate(focused) == "Close"
    page.keyboard.press("Escape")
    assert not large.is_visible()
    assert page.evaluate("document.activeElement.className") == "picture"
    button.click()
    large.get_by_role("button", name="Close").click()
    assert not large.is_visible()


def test_the_enlarged_picture_shows_the_image_without_a_second_copy(open_page, pages):
    page = open_page(GROUNDING)
    page.locator("#pictures button.picture").first.click()
    name = page.locator(".large:popover-open use").first.get_attribute("href")
    assert page.locator(f"image{name}").count() == 1
    html = (pages[GROUNDING] / "report.html").read_text()
    images = len(page.locator("image").all())
    assert html.count("data:image/") == images


def test_examples_are_filtered_and_ordered_without_a_script(open_page):
    page = open_page(GROUNDING)
    figures = page.locator("#pictures figure[data-outcome]")
    everything = figures.count()
    page.get_by_label("worsened").check()
    shown = [one.get_attribute("data-outcome") for one in figures.all() if one.is_visible()]
    assert set(shown) == {"worsened"} and len(shown) < everything
    page.get_by_label("all (").check()
    page.get_by_label("largest gain first").check()
    changes = _in_reading_order(figures)
    assert len(changes) == everything and changes == sorted(changes, reverse=True)
    page.get_by_label("worst answer first").check()
    assert _in_reading_order(figures) != changes


def _in_reading_order(figures):
    placed = [
        (one.bounding_box(), float(one.get_attribute("data-change"))) for one in figures.all()
    ]
    return [change for _, change in sorted(placed, key=lambda p: (round(p[0]["y"]), p[0]["x"]))]


def test_terms_explain_themselves_on_hover_on_focus_and_on_a_tap(open_page):
    page = open_page(GROUNDING)
    term = page.locator("#table .term").first
    tip = term.locator(".tip")
    assert not tip.is_visible()
    term.hover()
    assert tip.is_visible()
    page.mouse.move(0, 0)
    term.locator("button").focus()
    assert tip.is_visible()
    phone = open_page(GROUNDING, PHONE)
    word = phone.locator("#training .term").last
    word.locator("button").tap()
    box = word.locator(".tip").bounding_box()
    assert word.locator(".tip").is_visible()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390


@pytest.mark.parametrize("column", range(3))
def test_a_tip_in_a_table_is_not_cut_off(open_page, column):
    page = open_page(GROUNDING)
    term = page.locator("#training thead .term").nth(-1 - column)
    term.hover()
    box = term.locator(".tip").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= WIDE["width"]
    assert box["height"] > 30


def test_a_printed_page_has_its_texts_unfolded_and_no_controls(open_page):
    page = open_page(TEXTS)
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible() and not page.locator(".choices").is_visible()
    assert page.locator("#pictures details .text").first.is_visible()
