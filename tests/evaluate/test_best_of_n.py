from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perpo_pipeline.errors import ArtifactError, InputError
from perpo_pipeline.evaluate.best_of_n import (
    best_of_n_rows,
    best_of_n_table,
    expected_best_of_n,
)
from perpo_pipeline.evaluate.statistics import mean_interval
from perpo_pipeline.run import Console, make_at
from perpo_pipeline.store.writing import Recipe


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 7).flatmap(
        lambda size: st.lists(
            st.lists(st.floats(0, 1), min_size=size, max_size=size), min_size=1, max_size=4
        )
    )
)
def test_it_is_the_mean_of_the_maximum_over_every_subset(lists):
    size = len(lists[0])
    by_enumeration = [
        np.mean([max(subset) for values in lists for subset in combinations(values, n)])
        for n in range(1, size + 1)
    ]
    assert expected_best_of_n(lists) == pytest.approx(by_enumeration, abs=1e-12)


def test_n_draws_find_one_right_answer_of_four_with_probability_n_quarters():
    assert expected_best_of_n([[0, 0, 1, 0]]) == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_every_list_counts_the_same():
    assert expected_best_of_n([[0, 1], [0, 0]]) == pytest.approx([0.25, 0.5])


def test_large_lists_do_not_lose_precision():
    values = np.zeros((1, 400))
    values[0, 7] = 1
    assert expected_best_of_n(values) == pytest.approx(np.arange(1, 401) / 400, abs=1e-12)


@pytest.mark.parametrize("values", [[], [[]], [0.5, 1.0]])
def test_values_of_other_shapes_are_refused(values):
    with pytest.raises(InputError, match="shape"):
        expected_best_of_n(values)


def scores_version(
    root,
    lists,
    images=None,
    task="grounding",
    reward={"auto": 1.0},  # noqa: B006
    each=None,
    **truth,
):
    """A `scores` artifact over its prompts; `lists` has one row of rewards per list.

    `each` has what is different in each prompt.
    """
    blank = {
        "dataset": "d",
        "split": "train",
        "task": task,
        "source_row": "",
        "place": "",
        "image": {"bytes": None, "path": "x"},
        "image_notes": [],
        "width": 9,
        "height": 9,
        "prompt": "Where?",
        **truth,
    }
    prompts = [
        {**blank, "prompt_id": str(i), "image_sha256": str(images[i] if images else i)}
        | (each[i] if each else {})
        for i in range(len(lists))
    ]
    rows = [
        {"prompt_id": str(i), "sample_id": k, "reward": reward, "parse_ok": True}
        for i, rewards in enumerate(lists)
        for k, reward in enumerate(rewards)
    ]
    made = make_at(
        root / "prompts",
        Recipe("prompts", "train", "prepare", 1, {}),
        lambda writer: writer.write_part(0, prompts),
        Console(),
    )
    recipe = Recipe("scores", "train", "score", 1, {"reward": reward}, {"prompts": made})
    return make_at(root / "scores", recipe, lambda writer: writer.write_part(0, rows), Console())


def test_rows_have_ap50_and_miou_for_every_n(tmp_path):
    """Rewards .2, .6 and .9, .5: one draw is right with probability 1/2 and 1, two always."""
    rows = best_of_n_rows(scores_version(tmp_path, [[0.2, 0.6], [0.9, 0.5]]))
    found = {(row["name"], row["best_of"]): row["value"] for row in rows}
    assert found == pytest.approx(
        {("ap50", 1): 0.75, ("ap50", 2): 1.0, ("miou", 1): 0.55, ("miou", 2): 0.75}
    )
    assert all(row["n"] == 2 and row["low"] <= row["value"] <= row["high"] for row in rows)


def test_intervals_are_over_images(tmp_path):
    lists = np.random.default_rng(0).random((60, 3)).round(2).tolist()
    images = [index // 3 for index in range(60)]
    row = best_of_n_rows(scores_version(tmp_path, lists, images), num_resamples=500)[-1]
    expected = mean_interval(np.max(lists, axis=1), images, num_resamples=500)
    assert (row["name"], row["best_of"]) == ("miou", 3)
    assert (row["value"], row["low"], row["high"]) == pytest.approx(expected, abs=1e-12)


def test_the_best_of_n_pages_has_the_smallest_edit_distance(tmp_path):
    """Similarities .2 and .6 are distances .8 and .4: their mean is .6, the smaller one .4."""
    rows = best_of_n_rows(scores_version(tmp_path, [[0.2, 0.6]], task="ocr", gt_text="a"))
    assert [(row["task"], row["name"], row["best_of"], row["value"]) for row in rows] == [
        ("ocr", "edit_distance", 1, pytest.approx(0.6)),
        ("ocr", "edit_distance", 2, pytest.approx(0.4)),
    ]
    head, first, second, note = best_of_n_table(rows).splitlines()
    assert head.split() == ["best_of", "edit_distance", "n"] and first.split()[:2] == ["1", "60.0"]
    assert second.split()[:2] == ["2", "40.0"] and note == "lower is better: edit_distance"


def test_each_task_of_a_mixed_run_has_its_own_metrics(tmp_path):
    truths = [{"task": "ocr", "gt_text": "a"}, {"gt_box": [0.0, 0.0, 1.0, 1.0]}]
    rows = best_of_n_rows(scores_version(tmp_path, [[0.1, 0.7], [0.2, 0.6]], each=truths))
    last = {(row["task"], row["name"]): (row["value"], row["n"]) for row in rows}
    assert last == {
        ("ocr", "edit_distance"): (pytest.approx(0.3), 1),
        ("grounding", "ap50"): (1.0, 1),
        ("grounding", "miou"): (pytest.approx(0.6), 1),
    }
    assert "mean_reward" not in {row["name"] for row in rows}
    pages, boxes = best_of_n_table(rows).split("\n\n")
    assert pages.startswith("ocr:\nbest_of  edit_distance") and pages.endswith("edit_distance")
    assert boxes.startswith("grounding:\nbest_of  ap50") and "lower" not in boxes


def test_several_boxes_have_a_mean_reward(tmp_path):
    truth = {"gt_boxes": [[0.0, 0.0, 1.0, 1.0]]}
    rows = best_of_n_rows(scores_version(tmp_path, [[0.2, 0.6]], **truth))
    assert [(row["name"], row["value"]) for row in rows] == [
        ("mean_reward", pytest.approx(0.4)),
        ("mean_reward", pytest.approx(0.6)),
    ]


def test_lists_of_unequal_length_are_refused(tmp_path):
    version = scores_version(tmp_path, [[0.2, 0.6], [0.1], [0.3, 0.4]])
    with pytest.raises(ArtifactError, match=r"has 2 samples, but 1 have fewer, first .* 1"):
        best_of_n_rows(version)


def test_the_table_has_one_line_per_n(tmp_path):
    rows = best_of_n_rows(scores_version(tmp_path, [[0.2, 0.6], [0.9, 0.5]]))
    head, first, second = best_of_n_table(rows).splitlines()
    assert head.split() == ["best_of", "ap50", "miou", "n"]
    assert first.split()[:2] == ["1", "75.0"] and "55.0" in first
    assert second.split()[:2] == ["2", "100.0"] and "75.0" in second


def test_rewards_that_are_not_an_iou_are_not_called_ap50(tmp_path):
    """A point in a box gives 0 or 1, a user's reward any number: neither is an AP@50."""
    for number, reward in enumerate(({"point_in_box": 1.0}, {"iou": 0.5, "mine:f": 0.5}, None)):
        scores = scores_version(tmp_path / str(number), [[0.0, 1.0]], reward=reward)
        assert {row["name"] for row in best_of_n_rows(scores)} == {"mean_reward"}
        place = tmp_path / f"page{number}"
        scores = scores_version(place, [[0.0, 1.0]], task="ocr", gt_text="a", reward=reward)
        assert {row["name"] for row in best_of_n_rows(scores)} == {"mean_reward"}


def test_a_box_beside_several_boxes_is_measured_as_the_box(tmp_path):
    """`auto` measures the single box if a prompt has both truths."""
    both = {"gt_box": [0.0, 0.0, 1.0, 1.0], "gt_boxes": [[0.0, 0.0, 1.0, 1.0]]}
    scores = scores_version(tmp_path / "both", [[0.0, 1.0]], **both)
    assert {row["name"] for row in best_of_n_rows(scores)} == {"ap50", "miou"}
    scores = scores_version(tmp_path / "set", [[0.0, 1.0]], gt_boxes=both["gt_boxes"])
    assert {row["name"] for row in best_of_n_rows(scores)} == {"mean_reward"}
