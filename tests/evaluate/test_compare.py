"""Two models' predictions compared pair by pair: values by hand, and what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from synthetic_run import make_synthetic_run

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.evaluate import compare
from perpo_pipeline.evaluate.compare import (
    compare_predictions,
    compare_versions,
    comparison_table,
    open_predictions,
)
from perpo_pipeline.evaluate.measure_files import (
    measure_answers,
    measure_boxes,
    measure_pages,
    measure_pope,
)
from perpo_pipeline.evaluate.statistics import (
    compare_paired,
    mcnemar_p,
    paired_difference_interval,
)
from perpo_pipeline.run import Console, make
from perpo_pipeline.store.artifacts import Version, open_version
from perpo_pipeline.store.schemas import COMPARISON
from perpo_pipeline.store.writing import Recipe

RIGHT, WRONG = "[0.1, 0.1, 0.5, 0.5]", "[0.6, 0.6, 0.9, 0.9]"


def grounding(folder: Path, name: str, answers, **changes) -> Version:
    rows = [
        {
            "completion": answer,
            "gt_box": [10, 10, 50, 50],
            "width": 100,
            "height": 100,
            **{key: values[index] for key, values in changes.items()},
        }
        for index, answer in enumerate(answers)
    ]
    file = folder / f"{name}.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    measure_boxes(file, out=folder / name, box_format="llava", frame="full")
    return open_version(folder / name / "predictions")


def test_right_or_wrong_answers_are_compared_by_mcnemars_test(tmp_path):
    """Of 8 prompts ours is right on 7 and theirs on 2, one of them in common."""
    ours = grounding(tmp_path, "ours", [RIGHT] * 7 + [WRONG])
    theirs = grounding(tmp_path, "theirs", [RIGHT] + [WRONG] * 6 + [RIGHT])
    ap50, miou = compare_predictions(ours, theirs)
    assert set(ap50) == set(COMPARISON.columns.names)
    assert (ap50["metric"], ap50["better"], ap50["worse"]) == ("ap50", "ours", "theirs")
    assert ap50["difference"] == pytest.approx(5 / 8)
    a, b = [1] * 7 + [0], [1] + [0] * 6 + [1]
    assert ap50["p_value"] == mcnemar_p(a, b) == pytest.approx(2 * 8 / 2**7)
    assert (ap50["test"], ap50["n"]) == ("mcnemar", 8)
    assert (ap50["low"], ap50["high"]) == paired_difference_interval(a, b)[1:]
    assert (miou["metric"], miou["test"]) == ("miou", "mcnemar")  # IoUs of 0 and 1 alone


def test_swapping_the_models_changes_the_sign_and_not_p(tmp_path):
    ours = grounding(tmp_path, "ours", [RIGHT] * 5 + [WRONG])
    theirs = grounding(tmp_path, "theirs", [WRONG] * 4 + [RIGHT] * 2)
    forth, back = compare_predictions(ours, theirs)[0], compare_predictions(theirs, ours)[0]
    assert forth["difference"] == -back["difference"]
    assert forth["p_value"] == back["p_value"]


def test_prompts_on_one_image_of_a_file_are_drawn_together(tmp_path):
    images = {"image": ["1.jpg", "1.jpg", "2.jpg", "2.jpg", "3.jpg", "3.jpg"]}
    ours = grounding(tmp_path, "ours", [RIGHT] * 6, **images)
    theirs = grounding(tmp_path, "theirs", [RIGHT, WRONG] * 3, **images)
    ap50 = compare_predictions(ours, theirs)[0]
    assert ap50["test"] == "paired bootstrap"
    assert (ap50["p_value"], ap50["test"]) == compare_paired(
        [1] * 6, [1, 0] * 3, [0, 0, 1, 1, 2, 2]
    )


def test_predictions_of_a_run_are_paired_by_prompt_and_drawn_by_image(tmp_path):
    run = make_synthetic_run(tmp_path)
    ours, theirs = (run.latest("predictions", name) for name in ("perpo@test", "base@test"))
    ap50, miou = compare_predictions(ours, theirs, num_resamples=500)
    rewards = [np.array(v.table()["reward"].to_pylist()) for v in (ours, theirs)]
    images = run.latest("prompts", "test").table()["image_sha256"].to_pylist()
    assert miou["difference"] == pytest.approx((rewards[0] - rewards[1]).mean())
    expected = paired_difference_interval(*rewards, images, num_resamples=500)
    assert (miou["difference"], miou["low"], miou["high"]) == expected
    assert (miou["better"], miou["worse"], miou["n"]) == ("perpo@test", "base@test", 40)
    assert ap50["difference"] == pytest.approx(
        np.subtract(*[r >= 0.5 for r in rewards], dtype=float).mean()
    )


def test_predictions_named_without_a_split_are_answered_with_the_splits(tmp_path):
    run = make_synthetic_run(tmp_path, num_prompts=4, methods=("perpo",), splits=("test", "more"))
    base = run.config.run_dir / "predictions/base"
    with pytest.raises(ArtifactError, match=f"give one of {base}@more, {base}@test$"):
        open_predictions(base)
    assert open_predictions(base.with_name("base@more")).variant == "base@more"
    with pytest.raises(ArtifactError, match="does not exist"):
        open_predictions(base.with_name("bass"))


def test_pages_are_compared_by_edit_distance(tmp_path):
    """ "ab" and "ax" for "ab": distances 0 and 1/2."""
    made = []
    for name, answer in (("good", "ab"), ("bad", "ax")):
        file = tmp_path / f"{name}.jsonl"
        file.write_text(json.dumps({"completion": answer, "gt_text": "ab"}))
        measure_pages(file, out=tmp_path / name)
        made.append(open_version(tmp_path / name / "predictions"))
    (row,) = compare_predictions(*made)
    assert (row["metric"], row["difference"], row["n"]) == ("edit_distance", -0.5, 1)
    note = "lower is better: edit_distance; there a negative difference is a gain"
    assert comparison_table([row]).splitlines()[-1] == note
    assert len(comparison_table([row | {"metric": "ap50"}]).splitlines()) == 2
    assert np.isnan(row["low"]) and np.isnan(row["p_value"])  # a single page says nothing


def test_pages_under_different_normal_forms_are_refused(tmp_path):
    file = tmp_path / "pages.jsonl"
    file.write_text(json.dumps({"completion": "a", "gt_text": "a"}))
    made = []
    for forms in ([], ["nfc", "whitespace"]):
        measure_pages(file, out=tmp_path / str(len(forms)), normalise=forms)
        made.append(open_version(tmp_path / str(len(forms)) / "predictions"))
    with pytest.raises(ArtifactError, match="normal forms of texts: none and nfc, whitespace"):
        compare_predictions(*made)


def test_answers_to_pope_are_compared_by_accuracy(tmp_path):
    questions = [{"question_id": i, "image": f"{i}.jpg", "text": "A cat?"} for i in range(4)]
    labels = [{"image": q["image"], "text": q["text"], "label": "yes"} for q in questions]
    files = []
    for name, rows in (("questions", questions), ("labels", labels)):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text("\n".join(map(json.dumps, rows)))
    made = []
    for name, said in (("good", ["Yes"] * 4), ("bad", ["No", "No", "No", "Yes"])):
        file = tmp_path / f"{name}.jsonl"
        answers = [{"question_id": i, "text": text} for i, text in enumerate(said)]
        file.write_text("\n".join(map(json.dumps, answers)))
        measure_pope(file, questions=files[0], labels=files[1], out=tmp_path / name)
        made.append(open_version(tmp_path / name / "predictions"))
    (row,) = compare_predictions(*made)
    assert (row["metric"], row["difference"], row["test"]) == ("accuracy", 0.75, "mcnemar")
    assert row["p_value"] == pytest.approx(2 / 8)


def test_predictions_of_different_prompts_are_refused_with_their_number(tmp_path):
    ours = grounding(tmp_path, "ours", [RIGHT] * 3)
    theirs = grounding(tmp_path, "theirs", [RIGHT] * 5)
    with pytest.raises(
        ArtifactError, match=r"0 of 3 are only in the first, 2 of 5 only in the sec"
    ):
        compare_predictions(ours, theirs)
    other_truth = grounding(tmp_path, "other", [RIGHT] * 3, width=[101] * 3)
    with pytest.raises(ArtifactError, match="3 of 3 are only in the first, 3 of 3"):
        compare_predictions(ours, other_truth)


def test_prompts_with_equal_ids_and_different_truths_are_refused(tmp_path):
    """Two runs with the same prompt ids; in one of them a box differs."""
    ours, theirs = (
        make_synthetic_run(tmp_path / name, expression="box {index}") for name in ("a", "b")
    )
    versions = [run.latest("predictions", "base@test") for run in (ours, theirs)]
    assert compare_predictions(*versions)[0]["p_value"] == 1.0
    prompts = theirs.latest("prompts", "test")
    changed = prompts.table().to_pylist()
    changed[3]["gt_box"][0] += 1
    again = make(
        theirs,
        Recipe("prompts", "test", "prepare", 1, {"changed": True}),
        lambda writer: writer.write_part(0, changed),
    )
    recipe = Recipe(
        "predictions", "base@test", "eval", 1, versions[1].manifest["settings"], {"prompts": again}
    )
    moved = make(theirs, recipe, lambda writer: writer.write_part(0, versions[1].table()))
    with pytest.raises(
        ArtifactError, match=f"1 prompts have a different .* {changed[3]['prompt_id']}"
    ):
        compare_predictions(versions[0], moved)


def test_a_reward_that_is_not_an_iou_is_compared_as_mean_reward(tmp_path):
    made = [grounding(tmp_path, name, [RIGHT, WRONG]) for name in ("ours", "theirs")]
    for version in made:
        version.manifest["settings"]["reward"] = {"point_in_box": 1.0}
    assert [row["metric"] for row in compare_predictions(*made)] == ["mean_reward"]


def test_predictions_under_different_rewards_are_refused(tmp_path):
    ours = grounding(tmp_path, "ours", [RIGHT])
    changed = json.loads(json.dumps(ours.manifest))
    changed["settings"]["reward"] = {"point_in_box": 1.0}
    with pytest.raises(ArtifactError, match="different rewards"):
        compare_predictions(ours, Version(ours.path, changed))


def test_variants_with_equal_names_are_named_with_their_fingerprints(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ours = grounding(tmp_path / "a", "perpo", [RIGHT, WRONG])
    theirs = grounding(tmp_path / "b", "perpo", [WRONG, WRONG])
    row = compare_predictions(ours, theirs)[0]
    assert row["better"] == f"perpo {ours.fingerprint}" != row["worse"]


def test_the_table_has_one_line_per_metric_in_points():
    row = {
        "metric": "ap50",
        "better": "perpo",
        "worse": "base",
        "difference": 0.08,
        "low": 0.0601,
        "high": 0.1,
        "p_value": 0.00042,
        "test": "mcnemar",
        "n": 2048,
    }
    unsure = row | {"metric": "miou", "difference": -0.004, "p_value": 0.5, "low": float("nan")}
    head, first, second = comparison_table([row, unsure]).splitlines()
    assert head.split() == [
        "metric",
        "points",
        "95",
        "%",
        "interval",
        "p",
        "test",
        "n",
        "difference",
    ]
    assert first.split() == [
        "ap50",
        "+8.0",
        "[+6.0,",
        "+10.0]",
        "<",
        "0.001",
        "mcnemar",
        "2,048",
        "perpo",
        "-",
        "base",
    ]
    assert second.split()[:4] == ["miou", "-0.4", "[n/a,", "+10.0]"]
    assert "0.500" in second


def short_answers(folder: Path, name: str, rows) -> Version:
    file = folder / f"{name}.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    measure_answers(file, out=folder / name)
    return open_version(folder / name / "predictions")


def test_files_in_another_order_are_paired_by_id_and_refused_without(tmp_path):
    rows = [
        {"completion": "cat", "gt_text": "cat", "id": "q1"},
        {"completion": "dog", "gt_text": "owl", "id": "q2"},
        {"completion": "owl", "gt_text": "cat", "id": "q3"},
    ]
    named = [short_answers(tmp_path, "a", rows), short_answers(tmp_path, "b", rows[::-1])]
    (found,) = compare_predictions(*named)
    assert (found["difference"], found["low"], found["high"], found["n"]) == (0, 0, 0, 3)

    bare = [{k: v for k, v in row.items() if k != "id"} for row in rows]
    turned = [bare[0], bare[2], bare[1]]
    first, second = short_answers(tmp_path, "c", bare), short_answers(tmp_path, "d", turned)
    with pytest.raises(ArtifactError, match="row 2 of the first is the first of these") as refused:
        compare_predictions(first, second)
    assert "need an `id` on each line" in refused.value.fix
    with pytest.raises(ArtifactError, match="3 of 3 are only in the first"):
        compare_predictions(first, named[0])


def test_rows_that_are_known_by_their_line_alone_are_named(tmp_path, capsys):
    """Two of three rows have the same truth, and no id or image."""
    rows = [{"completion": "a", "gt_text": truth} for truth in ("yes", "no", "yes")]
    plain = short_answers(tmp_path, "a", rows)
    images = [row | {"image": f"{i}.jpg"} for i, row in enumerate(rows)]
    pictured = short_answers(tmp_path, "b", images)
    capsys.readouterr()
    compare_versions(plain, plain, out=None, console=Console())
    assert "2 rows have no `id` and the truth of other rows" in capsys.readouterr().err
    compare_versions(pictured, pictured, out=None, console=Console())
    assert "no `id`" not in capsys.readouterr().err


def test_prompts_with_other_images_beside_that_of_the_truth_are_refused(monkeypatch):
    def prompts(name, *others):
        facts = [{"sha256": other, "width": 1, "height": 1, "notes": []} for other in others]
        row = {"prompt_id": "p", "image_sha256": "a", "more_image_facts": facts, "box_image": 1}
        row = dict.fromkeys(compare.TRUTH) | row
        table = pa.Table.from_pylist([row])
        return SimpleNamespace(
            manifest={"settings": {}},
            fingerprint=name,
            path=name,
            table=lambda columns: table.select(columns),
        )

    monkeypatch.setattr(compare, "input_of", lambda version, name: version)
    rows = pl.DataFrame({"prompt_id": ["p"]})
    compare._check_truth(rows, prompts("one", "b"), prompts("two", "b"))
    with pytest.raises(ArtifactError, match="1 prompts have a different image or truth"):
        compare._check_truth(rows, prompts("one", "b"), prompts("two", "c"))
