"""Earlier lists beside new ones: which are kept, what is recorded, and what finds them again."""

from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError
from synthetic_run import (
    BOTH,
    evaluate_synthetic,
    prepare_synthetic,
    sample_synthetic,
    synthetic_config,
    train_synthetic,
)

from perpo_pipeline.commands.make_rules import rules
from perpo_pipeline.config.filter import FilterConfig
from perpo_pipeline.config.fingerprints import counted_settings
from perpo_pipeline.errors import ArtifactError, ConfigError, InputError
from perpo_pipeline.evaluate.evaluate_model import refuse_images_of
from perpo_pipeline.filter import filter_lists as module
from perpo_pipeline.filter.earlier import check_same_prompts, choose_earlier
from perpo_pipeline.filter.filter_lists import filter_lists
from perpo_pipeline.report.inputs import open_inputs
from perpo_pipeline.report.ranked import read_ranked
from perpo_pipeline.report.sampled import read_sampled
from perpo_pipeline.run import Run, make
from perpo_pipeline.score.score_answers import score
from perpo_pipeline.status.expected import differences
from perpo_pipeline.store.artifacts import Version, input_of
from perpo_pipeline.store.list_prompts import num_new_lists, prompts_of_lists
from perpo_pipeline.store.writing import Recipe, Writer
from perpo_pipeline.train.lists import ranked_lists
from perpo_pipeline.train.task import _rows_and_prompts

EARLIER = pl.DataFrame(
    {
        "prompt_id": ["a", "b", "c", "d", "p", "q"],
        "task": ["grounding"] * 4 + ["ocr"] * 2,
        "margin": [0.8, 1.0, 0.9, 0.8, 0.04, 0.05],
    }
)


@pytest.mark.parametrize(
    ("share", "new", "kept"),
    [
        (0.5, [], ["b", "c", "q"]),  # two of four boxes, one of two pages
        (1.0, [], ["b", "c", "d", "a", "q", "p"]),  # sha256 of "d" is below that of "a"
        (0.75, ["b"], ["c", "d", "a", "q", "p"]),  # three of four, and two (1.5) of two
        (0.25, ["b", "q"], ["c"]),  # a half is rounded to the even number: no page
    ],
)
def test_of_each_task_the_widest_are_kept_without_prompts_that_have_a_new_list(
    share: float, new: list[str], kept: list[str]
) -> None:
    for order in (EARLIER, EARLIER.reverse()):
        found = choose_earlier(order, pl.Series("prompt_id", new, pl.String), share)
        assert sorted(found) == sorted(kept)


def made_run(
    root: Path,
    name: str,
    *,
    num_prompts: int = 16,
    splits: tuple[str, ...] = ("train",),
    task: str = "grounding",
    expression: str = "number {index}",
    **settings: Any,
) -> Run:
    """A run up to its scores; its prompts are as many, its file has these settings of filter.

    Prompt 0 has the same prompt_id in all such runs, and so on; `expression` is its question.
    """
    config = synthetic_config(root, num_prompts=num_prompts, splits=splits, task=task)
    filtered = config.filter.model_copy(update=settings)
    run = Run(config.model_copy(update={"run": name, "filter": filtered}), quiet=True)
    prepare_synthetic(run, "train", task=task, expression=expression)
    sample_synthetic(run)
    score(run, "train")
    return run


def runs_of(*versions: Version) -> list[str]:
    """The runs whose folders they are in."""
    return [one.path.resolve().parts[-4] for one in versions]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Version:
    return filter_lists(made_run(tmp_path_factory.mktemp("first"), "one", num_prompts=24), "train")


def test_earlier_lists_follow_the_new_ones_and_their_prompts_are_found(
    first: Version, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = filter_lists(made_run(tmp_path, "alone"), "train")
    assert "earlier" not in str(alone.manifest["settings"])
    made = filter_lists(
        made_run(tmp_path, "both", earlier=first.path.parent, keep_earlier=0.5), "train"
    )
    rows, new, old = (one.table().to_pylist() for one in (made, alone, first))
    own = {row["prompt_id"] for row in new}
    ids = [row["prompt_id"] for row in rows]
    assert set(ids[: len(new)]) == own and len(set(ids)) == len(ids)
    added = rows[len(new) :]
    # Both runs have prompts 0 to 15, so an earlier list of them gives way to a new one.
    others = [row for row in old if row["prompt_id"] not in own]
    wanted = min(round(0.5 * len(old)), len(others))
    assert len(added) == wanted > 0 and all(row in others for row in added)
    left = [row["margin"] for row in others if row not in added]
    assert min(row["margin"] for row in added) >= max(left, default=0.0)
    assert made.manifest["counts"]["earlier"] == {"lists": len(old), "kept": wanted}
    assert made.manifest["counts"]["kept"] == alone.manifest["counts"]["kept"] == len(new)
    assert runs_of(input_of(made, "prompts")) == ["both"]
    assert runs_of(*prompts_of_lists(made)) == ["both", "one"]
    assert runs_of(*prompts_of_lists(alone)) == ["alone"]
    assert f"{wanted} of {len(old)} earlier lists are trained on, too" in capsys.readouterr().err


def test_later_stages_read_earlier_lists_too(first: Version, tmp_path: Path) -> None:
    """No adapter is measured on the images of its earlier lists; the report shows new lists."""
    settings = {"earlier": first.path, "keep_earlier": 0.3}
    run = made_run(tmp_path, "late", num_prompts=12, splits=("test",), **settings)
    made = filter_lists(run, "train")
    ids = set(made.table()["prompt_id"].to_pylist())
    (own, old) = [one.table().to_pylist() for one in prompts_of_lists(made)]
    new_images = {row["image_sha256"] for row in own}
    old = [row for row in old if row["image_sha256"] not in new_images]
    seen = {row["image_sha256"] for row in old if row["prompt_id"] in ids}
    for name in run.config.train.variants():
        train_synthetic(run, name)
    adapter = run.latest("adapter", "perpo")
    for is_seen in (True, False):
        rows = [row for row in old if (row["image_sha256"] in seen) == is_seen]
        recipe = Recipe("prompts", f"seen-{is_seen}", "prepare", 4, {})
        prompts = make(run, recipe, lambda writer, rows=rows: writer.write_part(0, rows))
        assert prompts.manifest["rows"] == len(rows) > 0
        with pytest.raises(ArtifactError, match="trained on") if is_seen else nullcontext():
            refuse_images_of(adapter, prompts)
    prepare_synthetic(run, "test", expression="{index}")
    evaluate_synthetic(run, run.config.eval_models())
    inputs = open_inputs(run)
    ranked = read_ranked(inputs, adapter.manifest["settings"], wanted=1000)
    new = made.manifest["counts"]["kept"]
    assert len(ranked) == new < len(ids)
    (sampled,) = read_sampled(inputs).values()
    assert len(sampled.kept_margins) == new


def test_the_report_shows_new_lists_where_the_earlier_ones_have_the_same_prompts(
    tmp_path: Path,
) -> None:
    """As with `rounds.prompts: same`: the cap leaves out prompts that have an earlier list."""
    first = filter_lists(made_run(tmp_path, "first"), "train")
    settings = {"earlier": first.path, "keep_earlier": 1.0, "max_lists": 3}
    made = filter_lists(made_run(tmp_path, "second", **settings), "train")
    assert made.manifest["rows"] > made.manifest["counts"]["kept"] == num_new_lists(made) == 3
    scores = input_of(made, "scores")
    inputs: Any = SimpleNamespace(
        preferences=made, scores=scores, sampled_prompts=input_of(scores, "prompts")
    )
    new = made.table().to_pylist()[:3]
    ranked = read_ranked(inputs, {"method": "perpo", "gamma": 1.0}, wanted=1000)
    assert {one.prompt["prompt_id"] for one in ranked} == {row["prompt_id"] for row in new}
    (sampled,) = read_sampled(inputs).values()
    assert sampled.kept_margins.tolist() == [row["margin"] for row in new]
    dropped = sum(map(len, sampled.dropped_margins.values()))
    assert len(sampled.kept_margins) + dropped == len(sampled.rewards) == 16


def test_equal_ids_of_other_prompts_are_refused(first: Version, tmp_path: Path) -> None:
    settings = {"earlier": first.path, "keep_earlier": 0.5}
    run = made_run(tmp_path, "other", expression="another {index}", **settings)
    with pytest.raises(InputError) as found:
        filter_lists(run, "train")
    what, where, fix = found.value.parts()
    assert what.startswith("16 of the 16 prompts whose prompt_id the new and the earlier lists")
    assert "drawn, box 0 (prompt " in what and what.endswith("): prompt differs")
    assert str(input_of(first, "prompts").path) in str(where) and "`dataset`" in str(fix)


@pytest.mark.parametrize(
    ("changed", "differs"),
    [
        ({"prompt": "Which?"}, "prompt differs"),
        ({"image_sha256": "0" * 64}, "image_sha256 differs"),
        ({"gt_box": [1.0, 2.0, 3.0, 4.5]}, "gt_box differs"),
        ({"gt_box": None, "gt_boxes": [[1.0, 2.0, 3.0, 4.5]]}, "gt_box and gt_boxes differ"),
        ({"prompt_id": "0" * 16, "prompt": "Which?"}, None),  # they do not share it
        ({"place": "elsewhere", "extra": None}, None),
    ],
)
def test_question_image_and_truth_make_a_prompt(
    first: Version, tmp_path: Path, changed: dict[str, Any], differs: str | None
) -> None:
    run = Run(synthetic_config(tmp_path), quiet=True)
    rows = input_of(first, "prompts").table().to_pylist()[:3]
    recipe = Recipe("prompts", "changed", "prepare", 4, {})
    changed_rows = [*rows[:2], rows[2] | changed]
    prompts = make(run, recipe, lambda writer: writer.write_part(0, changed_rows))
    with nullcontext() if differs is None else pytest.raises(InputError) as found:
        check_same_prompts(prompts, {"earlier": first})
    if differs is not None:
        assert found.value.what.startswith("1 of the 3 prompts")
        assert found.value.what.endswith(f": {differs}")


def test_each_list_is_trained_with_the_prompt_that_it_was_sampled_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another run's prompts have its prompt_id: lists may be older than the check."""
    monkeypatch.setattr(module, "check_same_prompts", lambda prompts, earlier: None)
    made: list[Version] = []
    for name, num, cap in (("one", 24, 3000), ("two", 16, 2), ("three", 16, 2)):
        earlier = {"earlier": made[-1].path, "keep_earlier": 1.0} if made else {}
        asked = {"expression": f"{name} {{index}}", "max_lists": cap, "seed": len(made)}
        made.append(
            filter_lists(made_run(tmp_path, name, num_prompts=num, **asked, **earlier), "train")
        )
    lists = ranked_lists(*_rows_and_prompts(made[2]))
    asked_in = [str(one.prompt["prompt"]).split(": ")[-1].split()[0] for one in lists]
    sampled_by = [{row["prompt_id"] for row in one.table().to_pylist()[:2]} for one in made]
    own = {key: "two" for key in sampled_by[1]} | {key: "three" for key in sampled_by[2]}
    assert asked_in == [own.get(one.prompt["prompt_id"], "one") for one in lists]
    assert asked_in[:2] == ["three", "three"] and {"one", "two"} < set(asked_in)


def test_warnings_count_the_earlier_lists_of_each_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = filter_lists(made_run(tmp_path, "first", task=BOTH, splits=("test",)), "train")
    tasks = Counter(first.table()["task"].to_pylist())
    settings = {"earlier": first.path, "keep_earlier": 1.0, "max_lists": 2}
    capsys.readouterr()
    made = filter_lists(
        made_run(tmp_path, "second", task=BOTH, splits=("test",), **settings), "train"
    )
    said = capsys.readouterr().err
    assert Counter(made.table()["task"].to_pylist()) == tasks
    for task, lists in tasks.items():
        assert lists > 2 and f"filter: {task} alone: {lists} lists make" in said


def test_lists_that_were_kept_before_are_earlier_lists_too(first: Version, tmp_path: Path) -> None:
    settings = {"earlier": first.path, "keep_earlier": 1.0, "max_lists": 2}
    second = filter_lists(made_run(tmp_path, "two", num_prompts=4, **settings), "train")
    settings["earlier"] = second.path
    third = filter_lists(made_run(tmp_path, "three", num_prompts=4, **settings), "train")
    assert second.manifest["rows"] > 2 and third.manifest["rows"] >= second.manifest["rows"]
    assert runs_of(*prompts_of_lists(third)) == ["three", "two", "one"]


def test_a_killed_filter_goes_on_and_other_lists_at_the_place_are_noticed(
    first: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LISTS_PER_PART", 2)
    run = made_run(tmp_path, "killed", earlier=first.path, keep_earlier=1.0)
    write, done = Writer.write_part, list[int]()

    def fail(self: Writer, index: int, rows: Any, table: str | None = None) -> None:
        if self.recipe.artifact == "preferences" and len(done) == 5:
            raise KeyboardInterrupt
        done.append(index)
        write(self, index, rows, table)

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "write_part", fail)
        with pytest.raises(BaseException, match="interrupted"):
            filter_lists(run, "train")
    made = filter_lists(run, "train")
    monkeypatch.setattr(module, "LISTS_PER_PART", 1024)
    other = made_run(tmp_path / "other", "killed", earlier=first.path, keep_earlier=1.0)
    assert made.table().equals(filter_lists(other, "train").table())

    def said(**changes: Any) -> list[str]:
        changed = run.config.filter.model_copy(update=changes)
        config = run.config.model_copy(update={"filter": changed})
        return [str(one) for one in differences(("preferences", "train"), made.manifest, config)]

    assert said() == said(earlier=first.path.parent) == []
    assert said(earlier=made.path) == ["other earlier lists than filter.earlier has now"]
    assert said(earlier=None, keep_earlier=None) == [
        "filter.keep_earlier 1.0, the configuration says null"
    ]
    assert said(keep_earlier=0.5) == ["filter.keep_earlier 1.0, the configuration says 0.5"]


def test_without_earlier_lists_nothing_new_counts() -> None:
    counted = counted_settings("preferences", FilterConfig(), {})
    assert set(counted) == {
        *("strategy", "min_margin", "max_margin", "list_size", "drop_unparsed"),
        *("equal_datasets", "max_lists", "seed"),
    }


@pytest.mark.parametrize("given", [{"earlier": "lists"}, {"keep_earlier": 0.5}])
def test_a_share_without_lists_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="give both or neither"):
        FilterConfig.model_validate(given)


def test_a_place_without_lists_is_named(first: Version, tmp_path: Path) -> None:
    for place, what in ((tmp_path / "none", "does not exist"), (prompts_at(first), "'prompts'")):
        run = made_run(tmp_path, "missing", num_prompts=2, earlier=place, keep_earlier=0.5)
        with pytest.raises(ArtifactError, match=what):
            filter_lists(run, "train")


def test_the_lists_that_the_stage_makes_are_no_earlier_ones(tmp_path: Path) -> None:
    place = tmp_path / "own" / "preferences" / "train"
    run = made_run(tmp_path, "own", earlier=place, keep_earlier=0.5)
    with pytest.raises(ConfigError, match="names the lists that this stage makes"):
        filter_lists(run, "train")


def test_make_looks_at_the_earlier_lists(tmp_path: Path) -> None:
    def needs(earlier: Path | None) -> str:
        config = synthetic_config(tmp_path)
        filtered = config.filter.model_copy(update={"earlier": earlier})
        lines = [*rules(config.model_copy(update={"filter": filtered}))]
        (line,) = [one for one in lines if one.startswith("$(DATA)/preferences/train/current &:")]
        return line

    assert "$(wildcard data/one/preferences/train/current)" in needs(
        Path("data/one/preferences/train")
    )
    assert "wildcard" not in needs(None) and "wildcard" not in needs(Path("a folder/train"))


def prompts_at(preferences: Version) -> Path:
    return input_of(preferences, "prompts").path
