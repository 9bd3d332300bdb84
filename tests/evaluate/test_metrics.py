"""The metrics of a split: which there are, their values by hand, and their intervals."""

import pyarrow as pa
import pytest
from metric_rows import BOX, grounding, tables, values

from perpo_pipeline.answers.settings import Reading
from perpo_pipeline.errors import ArtifactError, InputError
from perpo_pipeline.evaluate import metrics
from perpo_pipeline.evaluate.metrics import missing_metrics
from perpo_pipeline.evaluate.statistics import mean_interval, wilson_interval
from perpo_pipeline.evaluate.summarise import doubts_of, summarise
from perpo_pipeline.rewards.scoring import score_samples
from perpo_pipeline.store.schemas import METRICS


def test_a_box_is_right_from_the_threshold_on_and_an_unparsed_answer_counts_as_wrong():
    made = tables(*grounding(1.0, 0.75, 0.5, 0.49), *grounding(0.0, parse_ok=False))
    found = summarise(*made)
    assert values(found) == pytest.approx(
        {
            "ap50": 3 / 5,
            "ap75": 2 / 5,
            "miou": 2.74 / 5,
            "parse_rate": 4 / 5,
            "out_of_frame_rate": 0,
        }
    )
    place = {"split": "test", "dataset": "all", "slice_column": None, "slice_value": None}
    assert found[0] == {"name": "ap50", "n": 5} | place | dict(
        zip(("value", "low", "high"), wilson_interval(3, 5), strict=True)
    )
    assert [set(row) for row in found] == [set(METRICS.columns.names)] * 5


def test_intervals_draw_the_prompts_of_an_image_together():
    made = tables(*grounding(0.9, 0.1, image_sha256="a"), *grounding(0.8, 0.3, image_sha256="b"))
    miou = next(row for row in summarise(*made) if row["name"] == "miou")
    expected = mean_interval([0.9, 0.1, 0.8, 0.3], list("aabb"))
    assert (miou["value"], miou["low"], miou["high"]) == expected


def test_several_datasets_are_measured_together_and_separately():
    made = tables(*grounding(1.0, 0.0), *grounding(1.0, dataset="e"), *grounding(0.0, split="val"))
    found = summarise(*made)
    assert values(found)["ap50"] == pytest.approx(2 / 3)
    assert values(found, dataset="d")["ap50"] == 0.5
    assert values(found, dataset="e")["ap50"] == 1.0
    assert values(found, split="val") == values(found, split="val", dataset="all")
    assert {(r["split"], r["dataset"]) for r in found} == {
        ("test", "all"),
        ("test", "d"),
        ("test", "e"),
        ("val", "all"),
    }


def test_polygons_have_the_metrics_of_boxes_and_sets_of_boxes_only_their_mean():
    polygon = ("grounding", 0.6, {"gt_polygon": [0.0, 0.0, 1.0, 0.0, 1.0, 1.0]})
    several = ("grounding", 0.4, {"gt_boxes": [BOX, BOX], "parse_ok": False})
    found = summarise(*tables(polygon, several))
    assert values(found) == {
        "ap50": 1.0,
        "ap75": 0.0,
        "miou": 0.6,
        "mean_set_iou": 0.4,
        "parse_rate": 0.5,
        "out_of_frame_rate": 0.0,
        **dict.fromkeys(("detection_f1", "detection_f1_mean", "box_count"), 0.0),
        **dict.fromkeys(("all_found", "t_acc"), 0.0),  # its completion is empty
    }
    assert {row["name"]: row["n"] for row in found} == {
        "ap50": 1,
        "ap75": 1,
        "miou": 1,
        "mean_set_iou": 1,
        "parse_rate": 2,
        "out_of_frame_rate": 2,
        **dict.fromkeys(("detection_f1", "detection_f1_mean", "box_count"), 1),
        **dict.fromkeys(("all_found", "t_acc"), 1),
    }


A, B = [0.0, 0.0, 50.0, 50.0], [60.0, 60.0, 100.0, 100.0]


def any_number(completion, truth, **changes):
    """An answer of any number of boxes, scored as `perpo eval` scores it."""
    size = {"width": 100, "height": 100}
    return ("grounding", completion, {"gt_boxes": truth, **size, **changes})


def test_sets_with_and_without_targets_have_figures_of_their_own():
    """Both boxes; one of two and a copy of it; a denial; then without targets: a denial, a box,
    garbled text, an empty answer, a cut-off thought, and a prompt that could not be answered."""
    rows = [
        any_number("[0.6, 0.6, 1, 1], [0, 0, 0.5, 0.5]", [A, B]),
        any_number("[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5]", [A, B]),
        any_number("There is no dog in the image.", [A]),
        any_number("[]", []),
        any_number("[0, 0, 1, 1]", []),
        any_number("a dog", []),
        any_number("", []),
        any_number("<think>There is no dog. []", []),
        any_number("", [], finish_reason="unanswered"),
    ]
    predictions, prompts = tables(*rows)
    samples = predictions.append_column("sample_id", pa.array([0] * len(rows), pa.int32()))
    scored = score_samples(samples, prompts, reward="auto", reading=Reading())
    for name in ("reward", "parse_ok"):
        index = predictions.column_names.index(name)
        predictions = predictions.set_column(index, name, scored[name])
    found = summarise(predictions, prompts)
    # F1 of the second: 2 * 1 / 4. Of no target the fourth and the garbled one have no box.
    assert values(found) == pytest.approx(
        {
            "mean_set_iou": (1 + 1 / 2 + 0) / 3,
            "detection_f1": (1 + 1 / 2 + 0) / 3,
            "detection_f1_mean": (1 + 1 / 2 + 0) / 3,
            "box_count": (1 + 1 + 0) / 3,
            "t_acc": 2 / 3,
            "n_acc": 2 / 6,
            "denial_rate": 1 / 6,
            "all_found": (1 + 2) / 9,
            "parse_rate": 5 / 9,
            "unanswered_rate": 1 / 9,
            "out_of_frame_rate": 0,
        }
    )
    numbers = {row["name"]: row["n"] for row in found}
    assert [numbers[name] for name in ("t_acc", "n_acc", "all_found")] == [3, 6, 9]


def test_points_have_their_mean_closeness():
    rows = [("grounding", value, {"gt_point": [1.0, 2.0]}) for value in (0.9, 0.3)]
    assert values(summarise(*tables(*rows))) == pytest.approx(
        {"point_closeness": 0.6, "parse_rate": 1.0, "out_of_frame_rate": 0.0}
    )


def test_texts_are_normalised_before_every_metric_of_texts():
    made = tables(("ocr", "# caf\u00e9  au", {"gt_text": "cafe\u0301 au"}))
    plain = values(summarise(*made))
    assert plain["edit_distance"] > 0 and plain["cer"] > 0 and plain["f1"] < 1
    forms = ["nfc", "markdown", "whitespace"]
    found = values(summarise(*made, normalise=forms))
    assert (found["edit_distance"], found["cer"], found["wer"], found["f1"]) == (0, 0, 0, 1)


def test_a_truth_that_a_normal_form_empties_is_not_met_by_no_answer():
    made = tables(("ocr", "", {"gt_text": "---", "finish_reason": "unanswered"}))
    found = values(summarise(*made, normalise=["markdown"]))
    assert (found["edit_distance"], found["cer"]) == (1, 1)


def test_pages_have_foxs_metrics_as_means_and_corpus_error_rates():
    """Pages "ab" for "ax" and "cdefghij" for itself: 1 edit of 10 characters, 1 of 2 words."""
    rows = [("ocr", "ab", {"gt_text": "ax"}), ("ocr", "cdefghij", {"gt_text": "cdefghij"})]
    found = values(summarise(*tables(*rows)))
    assert found["edit_distance"] == pytest.approx((1 / 2 + 0) / 2)
    assert (found["cer"], found["wer"]) == pytest.approx((1 / 10, 1 / 2))
    assert (found["f1"], found["precision"], found["recall"]) == (0.5, 0.5, 0.5)
    assert {"bleu"} <= set(found) and "token_f1" not in found


def test_foxs_own_order_swaps_precision_and_recall():
    made = tables(("ocr", "a b c d", {"gt_text": "a b"}))
    found = [values(summarise(*made, fox_compat=compat)) for compat in (False, True)]
    assert [(f["precision"], f["recall"]) for f in found] == [(0.5, 1.0), (1.0, 0.5)]


def test_short_answers_have_their_own_metrics():
    """ "two cats" against "two dogs": 1 of 2 tokens each way; 3 edits of 8."""
    made = tables(("vqa", "two cats", {"gt_text": "two dogs"}), ("vqa", "4", {"gt_text": "4"}))
    found = values(summarise(*made))
    assert found == pytest.approx(
        {"edit_distance": 3 / 8 / 2, "token_f1": 0.75, "exact_match": 0.5}
    )


def test_edit_distance_does_not_depend_on_the_reward_that_was_trained_on():
    predictions, prompts = tables(("vqa", "ab", {"gt_text": "ac"}))
    other = predictions.set_column(
        predictions.column_names.index("reward"), "reward", pa.array([0.123])
    )
    assert summarise(other, prompts) == summarise(predictions, prompts)


def test_without_wordnet_meteor_is_left_out_and_named(monkeypatch):
    monkeypatch.setattr(metrics, "find_wordnet", lambda: None)
    monkeypatch.setattr(metrics.ocr, "find_wordnet", lambda: None)
    assert "meteor" not in values(summarise(*tables(("ocr", "a", {"gt_text": "a"}))))
    assert "wordnet-base" in missing_metrics(["ocr"])["meteor"]
    assert missing_metrics(["grounding", "vqa"]) == {}


def test_no_predictions_are_refused():
    with pytest.raises(InputError, match="no predictions"):
        summarise(*tables())


def test_all_missing_columns_are_named():
    predictions, prompts = tables(*grounding(1.0))
    with pytest.raises(InputError, match=r"predictions lack reward, prompts lack dataset"):
        summarise(predictions.drop_columns("reward"), prompts.drop_columns("dataset"))


def test_predictions_without_their_prompt_are_refused():
    predictions, prompts = tables(*grounding(1.0, 0.5))
    with pytest.raises(ArtifactError, match="1 predictions have no prompt, first 1"):
        summarise(predictions, prompts.slice(0, 1))
    with pytest.raises(ArtifactError, match="occurs twice"):
        summarise(predictions, pa.concat_tables([prompts, prompts]))


def test_a_text_without_its_truth_is_refused():
    with pytest.raises(ArtifactError, match=r"1 prompts have no true text .*, first prompt 0"):
        summarise(*tables(("ocr", "a", {})))


def test_a_dataset_called_all_is_refused_beside_other_datasets():
    with pytest.raises(InputError, match="called 'all'"):
        summarise(*tables(*grounding(1.0), *grounding(0.0, dataset="all")))


def test_unanswered_prompts_are_wrong_even_where_nothing_is_the_truth() -> None:
    """Two pages are empty: the first was read as such, the second has no answer."""
    no_answer = {"finish_reason": "unanswered", "parse_ok": False}
    found = values(
        summarise(*tables(("vqa", "", {"gt_text": ""}), ("vqa", "", {"gt_text": "", **no_answer})))
    )
    assert found["exact_match"] == found["unanswered_rate"] == found["edit_distance"] == 0.5
    page = ("ocr", "abcde", {"gt_text": "abcde"})
    found = values(summarise(*tables(page, ("ocr", "", {"gt_text": "", **no_answer}))))
    assert (found["cer"], found["wer"]) == (1 / 5, 1.0), "one edit, however the row is marked"


def test_no_answer_is_wrong_where_the_truth_is_an_article_or_white_space() -> None:
    """Choice A of four: only the third answer is right. " " is a truth of no words."""
    no_answer = {"finish_reason": "unanswered", "parse_ok": False}
    cut = ("vqa", "<think>A or", {"gt_text": "A", "parse_ok": False})
    lost = ("vqa", "", {"gt_text": "A", **no_answer})
    found = values(summarise(*tables(lost, cut, ("vqa", "A.", {"gt_text": "A"}))))
    assert found["exact_match"] == found["token_f1"] == pytest.approx(1 / 3)
    found = values(summarise(*tables(("vqa", "", {"gt_text": " ", **no_answer}))))
    assert found["exact_match"] == found["token_f1"] == 0 and found["edit_distance"] == 1


def test_unanswered_prompts_are_no_sign_of_a_wrong_format() -> None:
    no_answer = {"gt_box": BOX, "finish_reason": "unanswered", "parse_ok": False}
    lost = [("grounding", 0.0, {**no_answer}) for _ in range(4)]
    assert doubts_of(*tables(*lost), Reading()) == []
    lost = [("grounding", 0.0, {**no_answer}) for _ in range(4)]
    unread = [("grounding", 0.0, {"gt_box": BOX, "parse_ok": False}) for _ in range(2)]
    assert "only 0 of 2 answers could be read" in doubts_of(*tables(*unread, *lost), Reading())[0]


def test_completions_whose_thought_does_not_end_are_counted() -> None:
    cut = ("vqa", "<think>4, so", {"gt_text": "4", "parse_ok": False})
    whole = ("vqa", "<think>hm</think>4", {"gt_text": "4"})
    (line,) = doubts_of(*tables(cut, whole), Reading())
    assert "1 of 2 completions hold no answer, because their thought does not end" in line
    assert doubts_of(*tables(whole), Reading()) == []


def test_the_share_of_unanswered_prompts_is_left_out_where_all_are_answered() -> None:
    rows = summarise(*tables(*grounding(1.0, 0.0)))
    assert "unanswered_rate" not in values(rows)
    lost = ("grounding", 0.0, {"finish_reason": "unanswered", "parse_ok": False})
    found = {row["name"]: row for row in summarise(*tables(*grounding(1.0, 1.0, 0.0), lost))}
    assert found["unanswered_rate"]["value"] == 0.25 and found["ap50"]["value"] == 0.5
    assert {row["n"] for row in found.values()} == {4}
