"""The page of a run on pages of text: lower is better, and examples say how they were chosen."""

import re

import numpy as np
import pytest
from html_page import Page
from synthetic_run import make_synthetic_run

from perpo_pipeline.evaluate.ocr import FOX_METRICS
from perpo_pipeline.evaluate.wordnet import find_wordnet
from perpo_pipeline.report.pictures import Chosen, choose_extremes
from perpo_pipeline.report.write_report import report

# PerPO helps, DPO harms.
RIGHT = {"base": 0.5, "dpo": 0.1, "perpo": 0.9}
MEASURED = [name for name in FOX_METRICS if name != "meteor" or find_wordnet() is not None]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    drawn = {"task": "ocr", "pages": True, "min_margin": 0.04, "right": RIGHT}
    root = tmp_path_factory.mktemp("run")
    return make_synthetic_run(root, num_prompts=48, methods=("perpo", "dpo"), pictures=8, **drawn)


@pytest.fixture(scope="module")
def version(run):
    return report(run)


@pytest.fixture(scope="module")
def html(version):
    return (version.path / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def text(html):
    return " ".join("".join(Page(html).text).split())


def _metrics(run, shown):
    rows = run.latest("metrics", f"{shown}@test").table().to_pylist()
    return {row["name"]: row for row in rows}


def _gains(run):
    """prompt_id -> reward of PerPO minus that of the base."""
    before, after = (
        {
            row["prompt_id"]: row["reward"]
            for row in run.latest("predictions", name).table().to_pylist()
        }
        for name in ("base@test", "perpo@test")
    )
    return {key: after[key] - before[key] for key in before}


def test_pages_are_compared_in_the_metrics_of_the_papers_table(run, version):
    rows = {(row["metric"], row["worse"]): row for row in version.table().to_pylist()}
    assert list(dict.fromkeys(name for name, _ in rows)) == [*MEASURED, "mean_reward"]
    for name in MEASURED:
        for other in ("base", "dpo"):
            ours, theirs = (_metrics(run, model)[name]["value"] for model in ("perpo", other))
            assert rows[name, other]["difference"] == pytest.approx(ours - theirs, abs=1e-9)
            assert rows[name, other]["low"] < rows[name, other]["difference"]
    assert rows["edit_distance", "base"]["high"] < 0 < rows["f1", "base"]["low"]
    mirrored = -rows["mean_reward", "base"]["difference"]
    assert rows["edit_distance", "base"]["difference"] == pytest.approx(mirrored)


def test_a_lower_distance_and_a_higher_f1_are_both_called_better(version, html, text):
    page = Page(html)
    cells = page.row("data-paired", "PerPO − Base")
    rows = {r["metric"]: r for r in version.table().to_pylist() if r["worse"] == "base"}
    assert len(cells) == 1 + len(MEASURED)
    distance, f1 = rows["edit_distance"], rows["f1"]
    assert cells[1].startswith(f"{distance['difference']:+.3f} [{distance['low']:+.3f}, ")
    assert cells[2].startswith(f"{100 * f1['difference']:+.1f} [{100 * f1['low']:+.1f}, ")
    assert cells[1].endswith(", better") and cells[2].endswith(", better")
    assert "so the model became better" in text and "worse" not in cells[1] + cells[2]
    assert "mean reward" not in text and "a difference of 0.02." in text
    assert "edit distance (lower is better)" in text
    assert html.count("below 0 is better") == 1


def test_a_method_that_harms_pages_is_said_to_make_them_worse(run):
    from perpo_pipeline.report.page.wording import format_of

    how = format_of("edit_distance")
    assert (how.judged(-0.1), how.judged(0.1)) == ("better", "worse")
    assert (format_of("f1").judged(-0.1), format_of("f1").judged(0.1)) == ("worse", "better")
    assert _metrics(run, "dpo")["edit_distance"]["value"] > 0  # the run has errors to show


def test_the_matching_another_and_a_blank_image_have_a_table(run, html):
    cells = Page(html).row("data-images", "perpo")
    assert len(cells) == 4
    for cell, name in zip(
        cells[1:], ("perpo", "perpo-other-image", "perpo-blank-image"), strict=True
    ):
        assert cell.startswith(f"{_metrics(run, name)['edit_distance']['value']:.3f} [")


def test_units_stand_in_the_heads_where_columns_differ(html):
    heads = next(cells for _, cells in Page(html).rows if cells and cells[0] == "Method")
    units = {cell.strip() for cell in heads}
    assert any(
        cell.startswith("edit distance") and cell.endswith("lower is better") for cell in units
    )
    assert any(cell.startswith("F1") and cell.endswith("%") for cell in units)


def test_the_best_of_n_is_the_smallest_distance(run, text):
    rows = run.latest("scores", "train").table().to_pylist()
    lists: dict[str, list[float]] = {}
    for row in rows:
        lists.setdefault(row["prompt_id"], []).append(row["reward"])
    one = np.mean([1 - np.mean(rewards) for rewards in lists.values()])
    six = np.mean([1 - max(rewards) for rewards in lists.values()])
    assert six < one
    assert f"chosen by reward: {one:.3f} for one sample, {six:.3f} for 6." in text


def test_examples_say_whether_they_are_random_or_the_largest_changes(run, html, text):
    gains = _gains(run)
    up, down = (sum(sign * gain > 0 for gain in gains.values()) for sign in (1, -1))
    figures = [
        attrs for tag, attrs in Page(html).tags if tag == "figure" and "data-chosen" in attrs
    ]
    chosen = [attrs["data-chosen"].split() for attrs in figures]
    assert sum("random" in one for one in chosen) >= 3
    assert sum("gain" in one for one in chosen) == 2
    assert sum("loss" in one for one in chosen) == min(2, down)
    random_first = ["random" in one for one in chosen]
    assert random_first == sorted(random_first, reverse=True)
    largest = max(float(attrs["data-change"]) for attrs in figures)
    assert largest == pytest.approx(max(gains.values()), abs=1e-4)
    assert f"largest gain of {up}" in text and "2nd largest gain" in text
    assert text.count("· chosen at random") == sum(random_first)


def test_answers_are_marked_beside_the_truth_with_their_edit_distance(html, text):
    shown = html[html.index('id="pictures"') : html.index('id="lists"')]
    assert "reward" not in " ".join("".join(Page(shown[: shown.rindex("</figure>")]).text).split())
    assert re.search(r"edit distance 0\.\d\d → 0\.\d\d", text)
    assert re.search(r'class="swap"><del>.</del><ins>.</ins></span>', shown)
    assert "↵" in shown and "as the truth" in text and "DPO 0." in text
    assert re.search(r"\d+ characters? (wrong|missing|too many)", text)


def test_the_largest_changes_are_ranked_and_no_change_is_neither():
    gains = np.array([0.2, -0.1, 0.0, 0.5, -0.4])
    found = choose_extremes(["a", "b", "c", "d", "e"], gains, 2)
    assert found == {3: Chosen(gain=1), 0: Chosen(gain=2), 4: Chosen(loss=1), 1: Chosen(loss=2)}
    assert choose_extremes(["a", "b"], np.array([0.1, 0.1]), 1) in (
        {0: Chosen(gain=1)},
        {1: Chosen(gain=1)},
    )
