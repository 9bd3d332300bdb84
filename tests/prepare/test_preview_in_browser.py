"""The preview in headless Chromium: nothing serious for axe, and no wider than a phone."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from perpo_pipeline.cli import main

pytestmark = pytest.mark.browser
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a doubt, boxes, a long word, a long text and a wide image."""
    root = tmp_path_factory.mktemp("preview")
    Image.new("RGB", (1600, 300), "white").save(root / "wide.png")
    Image.new("RGB", (64, 64), "white").save(root / "small.png")
    box = {"image": "wide.png", "task": "grounding", "expression": "cup" * 60}
    rows = [box | {"gt_box": [300, 10, 100, 200]}] * 2 + [box | {"gt_box": [10, 10, 100, 200]}]
    text = {"image": "small.png", "task": "ocr", "prompt": "Read.", "gt_text": "line\n" * 200}
    (root / "data.jsonl").write_text("\n".join(map(json.dumps, [*rows, text])))
    source = {"source": "jsonl", "path": str(root / "data.jsonl"), "leave_out_bad_rows": True}
    config = {"run": "r", "data_root": str(root), "prepare": {"train": source}}
    (root / "r.yaml").write_text(yaml.safe_dump(config | {"eval": {"splits": ["train"]}}))
    file = root / "preview.html"
    with pytest.raises(SystemExit) as ended:
        main(["prepare", "--config", str(root / "r.yaml"), "--preview", str(file), "--quiet"])
    assert not ended.value.code
    return file


@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_axe_finds_nothing_serious_and_nothing_is_wider_than_the_screen(
    page: Path, viewport: Any, chromium: Any
) -> None:
    import axe_playwright_python

    tab = chromium.new_page(viewport=viewport)
    tab.goto(page.as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    tab.add_script_tag(path=Path(axe_playwright_python.__file__).with_name("axe.min.js"))
    results = tab.evaluate("axe.run()")
    tab.close()
    serious = [v for v in results["violations"] if v["impact"] in ("serious", "critical")]
    assert not serious, json.dumps(serious, indent=1)
    assert results["passes"]
