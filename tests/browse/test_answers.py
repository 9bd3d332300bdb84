"""What is read of one prompt is what the artifacts have of it."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from browsed_run import Browsed, browse_run
from synthetic_run import prepare_synthetic, sample_synthetic, synthetic_config

from perpo_pipeline.browse.answers import read_predictions, read_samples
from perpo_pipeline.browse.versions import Sampled
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.filter.filter_lists import filter_lists
from perpo_pipeline.run import Run
from perpo_pipeline.score.score_answers import score
from perpo_pipeline.store.writing import Recipe, open_writer


def sampled_of(browsed: Browsed) -> Sampled:
    assert browsed.artifacts.sampled is not None
    return browsed.artifacts.sampled


def sampled_run(root: Path, **filters: Any) -> Run:
    config = synthetic_config(root, num_prompts=24, splits=("train",))
    filtered = config.filter.model_copy(update=filters)
    run = Run(config.model_copy(update={"filter": filtered}), quiet=True)
    prepare_synthetic(run, "train")
    sample_synthetic(run)
    score(run, "train")
    return run


def test_equal_answers_are_one_ranked_by_reward(boxes: Browsed) -> None:
    run = boxes.run
    both = [run.latest(name, "train").table().to_pylist() for name in ("samples", "scores")]
    for row in boxes.views["samples"].rows.head(12).to_dicts():
        rows = [
            sample | scored
            for sample, scored in zip(*both, strict=True)
            if sample["prompt_id"] == row["prompt_id"]
        ]
        found = read_samples(sampled_of(boxes), row)
        counts = Counter(one["completion"] for one in rows)
        assert {one.text: one.count for one in found} == counts
        assert [one.reward for one in found] == sorted(
            (one.reward or 0.0 for one in found), reverse=True
        )
        boxes_of = {one["completion"]: one["box"] for one in rows}
        assert {one.text: one.box for one in found} == boxes_of


def test_reference_logps_stand_beside_their_own_answers(tmp_path: Path) -> None:
    run = sampled_run(tmp_path)
    preferences = filter_lists(run, "train")
    lists = preferences.table().to_pylist()
    # Those of some lists alone, in another order, as of a training on some tasks.
    rows = [
        {
            "prompt_id": row["prompt_id"],
            "ref_logps": [-n - at / 100 for n in range(len(row["rewards"]))],
        }
        for at, row in reversed(list(enumerate(lists)))
        if at != 1
    ]
    recipe = Recipe("reference", "train", "reference", 1, {}, {"preferences": preferences})
    with open_writer(run.place("reference", "train"), recipe) as writer:
        writer.write_part(0, rows)
        writer.finish()
    browsed = browse_run(run)
    for at, row in enumerate(browsed.views["lists"].rows.to_dicts()):
        found = read_samples(sampled_of(browsed), row)
        wanted = [None if at == 1 else -n - at / 100 for n in range(len(found))]
        assert [one.text for one in found] == lists[at]["completions"]
        assert [one.ref_logp for one in found] == wanted
        assert [one.in_list for one in found] == lists[at]["counts"]
        assert {one.sampler_logprob for one in found} == {-1.0}


def test_reference_logps_of_other_lists_are_not_shown(tmp_path: Path) -> None:
    run = sampled_run(tmp_path)
    old = filter_lists(run, "train")
    recipe = Recipe("reference", "train", "reference", 1, {}, {"preferences": old})
    with open_writer(run.place("reference", "train"), recipe) as writer:
        writer.finish()
    assert sampled_of(browse_run(run)).reference is not None
    narrow = run.config.filter.model_copy(update={"max_lists": 3})
    filter_lists(Run(run.config.model_copy(update={"filter": narrow}), quiet=True), "train")
    assert sampled_of(browse_run(run)).reference is None


def test_answers_that_were_left_out_of_a_list_say_why(tmp_path: Path) -> None:
    run = sampled_run(tmp_path, drop_unparsed=True)
    filter_lists(run, "train")
    browsed = browse_run(run)
    seen: Counter[str] = Counter()
    for row in browsed.views["lists"].rows.to_dicts():
        for one in read_samples(sampled_of(browsed), row):
            assert bool(one.left_out) == (one.parse_ok is False)
            assert one.in_list == (0 if one.left_out else one.count)
            seen += one.left_out
    counts = run.latest("preferences", "train").manifest["counts"]["completions_left_out"]
    assert seen == counts and seen["unparsed"] > 0


def test_earlier_lists_are_shown_with_their_own_prompts(tmp_path: Path) -> None:
    first = sampled_run(tmp_path / "one")
    old = filter_lists(first, "train")
    config = synthetic_config(tmp_path / "two", num_prompts=6, splits=("train",))
    settings = {"earlier": old.path, "keep_earlier": 1.0}
    filtered = config.filter.model_copy(update=settings)
    run = Run(config.model_copy(update={"filter": filtered}), quiet=True)
    prepare_synthetic(run, "train")
    sample_synthetic(run)
    score(run, "train")
    made = filter_lists(run, "train")
    browsed = browse_run(run)
    rows, lists = browsed.views["lists"].rows.to_dicts(), made.table().to_pylist()
    assert [row["prompt_id"] for row in rows] == [row["prompt_id"] for row in lists]
    earlier = [row for row in rows if row["samples_at"] is None]
    assert earlier and {row["prompts"] for row in earlier} <= set(browsed.artifacts.prompts())
    for row, one in zip(rows, lists, strict=True):
        found = read_samples(sampled_of(browsed), row)
        assert [answer.text for answer in found] == one["completions"]
        assert row["prompt"] and row["margin"] == one["margin"]
        numbers = [row["best"], row["worst"]]
        assert numbers == pytest.approx([max(one["rewards"]), min(one["rewards"])])
        total = sum(a * b for a, b in zip(one["rewards"], one["counts"], strict=True))
        assert row["mean"] == pytest.approx(total / sum(one["counts"])) and row["rewards"]
    assert browsed.views["samples"].rows.height == 6


def test_every_models_prediction_is_read(boxes: Browsed) -> None:
    (test_set,) = boxes.artifacts.test_sets
    view = boxes.views["predictions/test"]
    stored = {
        model: {row["prompt_id"]: row for row in version.table().to_pylist()}
        for model, version in test_set.predictions.items()
    }
    for row in view.rows.to_dicts():
        found = read_predictions(test_set, row)
        asked = [model for model, rows in stored.items() if row["prompt_id"] in rows]
        assert [one.model for one in found] == asked
        for one in found:
            own = stored[one.model][row["prompt_id"]]
            assert (one.text, one.reward, one.box) == (own["completion"], own["reward"], own["box"])
            assert one.saw_image == (not one.model.endswith("-image"))


def test_scores_of_other_samples_are_refused(tmp_path: Path) -> None:
    run = sampled_run(tmp_path)
    scores = run.latest("scores", "train")
    rows = scores.table().to_pylist()
    swapped = [row | {"sample_id": 5 - row["sample_id"]} for row in rows]
    recipe = Recipe("scores", "train", "score", 9, {}, {"samples": run.latest("samples", "train")})
    with open_writer(run.place("scores", "train"), recipe) as writer:
        writer.write_part(0, swapped)
        writer.finish()
    browsed = browse_run(run)
    with pytest.raises(ArtifactError, match="do not have the same rows"):
        read_samples(sampled_of(browsed), browsed.views["samples"].rows.to_dicts()[0])
    with open_writer(
        run.place("scores", "train"), Recipe(**(vars(recipe) | {"stage_version": 8}))
    ) as w:
        w.write_part(0, [rows[0], rows[6], *rows[1:6], *rows[7:]])
        w.finish()
    with pytest.raises(ArtifactError, match="not in consecutive rows"):
        browse_run(run)
