"""`perpo browse --out`: one file with the first lists, which needs nothing else."""

from pathlib import Path
from typing import Any

import pytest
from browsed_run import Browsed
from html_page import Page

from perpo_pipeline.browse.file import check_file, write_file
from perpo_pipeline.browse.state import State
from perpo_pipeline.errors import ConfigError, InputError


def test_the_file_holds_the_first_lists_of_a_state_and_needs_nothing_else(
    boxes: Browsed, tmp_path: Path
) -> None:
    view, state = boxes.views["lists"], State("lists", sort="-margin")
    file = tmp_path / "lists.html"
    assert write_file(file, boxes.artifacts, view, state, 5) == 5
    text = file.read_text()
    page = Page(text)
    order = [view.rows["prompt_id"][int(place)] for place in view.order(state)]
    assert [a["id"] for t, a in page.tags if t == "article"] == order[:5]
    links = [a.get("href") or a.get("src") or "" for _, a in page.tags if "href" in a or "src" in a]
    assert links and all(link.startswith(("#", "data:image/")) for link in links)
    assert sum(link.startswith("data:image/") for link in links) == 5
    assert "script" not in {tag for tag, _ in page.tags} and str(tmp_path) not in text
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    style = text[text.index("<style>") : text.index("</style>")]
    assert '"Segoe UI"' in style and ".m0 { background: var(--c-" in style
    assert "5 of" in " ".join(page.text) and str(boxes.run.config.run_dir) not in text


def test_predictions_can_be_sent_too(texts: Browsed, tmp_path: Path) -> None:
    view = texts.views["predictions/test"]
    file = tmp_path / "changed.html"
    state = State(view.name, sort="-change")
    assert write_file(file, texts.artifacts, view, state, 100) == view.rows.height
    assert {"Base", "PerPO"} <= set(Page(file.read_text()).text)


def test_an_address_with_a_page_begins_there_and_one_with_a_prompt_is_that_prompt(
    boxes: Browsed, tmp_path: Path
) -> None:
    view, file = boxes.views["samples"], tmp_path / "some.html"
    ids = view.rows["prompt_id"].to_list()

    def written(**state: Any) -> list[str]:
        write_file(file, boxes.artifacts, view, State("samples", **state), 2)
        return [a["id"] or "" for t, a in Page(file.read_text()).tags if t == "article"]

    assert written(page=2) == ids[50:52]
    assert written(prompt=ids[7], sort="-mean") == [ids[7]]
    with pytest.raises(InputError, match="there is no prompt 0123 in the view samples"):
        written(prompt="0123")


def test_a_file_of_another_program_is_not_replaced(boxes: Browsed, tmp_path: Path) -> None:
    file = tmp_path / "notes.html"
    file.write_text("<p>my notes</p>")
    with pytest.raises(ConfigError, match="was not written by perpo browse, and would be lost"):
        check_file(file)
    assert write_file(file, boxes.artifacts, boxes.views["lists"], State("lists", q="none"), 2) == 0
    check_file(file)  # its own page, with no prompt on it, is replaced


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lists.txt", "this is not a file that ends in .html"),
        ("absent/lists.html", "does not exist"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_file(tmp_path / name)
