"""Settings by task: what they mean for prompts of one task, and what is wrong with them."""

from pathlib import Path
from typing import Any

import pytest

from perpo_pipeline.config.by_task import check_tasks, in_words
from perpo_pipeline.config.eval import EvalConfig
from perpo_pipeline.config.file import load_config
from perpo_pipeline.config.filter import FilterConfig
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.config.steps import warn_of_few_lists
from perpo_pipeline.config.train import TrainSettings
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.status.expected import differences

BOTH = """
run: r
prepare:
  train:
    - {source: testbed, num_prompts: 2}
    - {source: testbed, task: ocr, num_prompts: 2}
  scenes: {source: testbed, num_prompts: 2}
  pages: {source: testbed, task: ocr, num_prompts: 2}
eval: {splits: [scenes, pages]}
"""
LENGTHS: Any = {"grounding": 20, "ocr": 100}


def load(folder: Path, text: str = BOTH, **sets: object) -> RunConfig:
    (folder / "r.yaml").write_text(text)
    return load_config(folder / "r.yaml", {k.replace("__", "."): v for k, v in sets.items()})


def test_one_value_counts_in_fingerprints_as_it_always_has() -> None:
    assert FilterConfig().result_settings() == {
        "strategy": "lists",
        "min_margin": 0.8,
        "max_margin": None,
        "list_size": None,
        "drop_unparsed": False,
        "equal_datasets": False,
        "max_lists": 3000,
        "seed": 0,
    }
    assert "tasks" not in TrainSettings().result_settings()
    assert TrainSettings(tasks=["ocr", "grounding"]).result_settings()["tasks"] == [
        "grounding",
        "ocr",
    ]


def test_prompts_of_one_task_do_not_depend_on_the_values_of_others() -> None:
    config = EvalConfig(max_new_tokens=LENGTHS, batch_size={"grounding": 8, "ocr": 8})
    scenes = config.for_tasks(["grounding"])
    assert (scenes.max_new_tokens, scenes.batch_size) == (20, 8)
    assert config.for_tasks(["grounding", "ocr"]).max_new_tokens == LENGTHS
    assert config.longest() == 100
    assert [config.decoding(task).max_new_tokens for task in ("grounding", "ocr")] == [20, 100]
    other = EvalConfig(max_new_tokens=LENGTHS | {"ocr": 50})
    assert other.for_tasks(["grounding"]).max_new_tokens == scenes.max_new_tokens


def test_the_same_cap_for_each_task_is_no_cap_for_all_of_them_together() -> None:
    each = {"grounding": 500, "ocr": 500}
    assert FilterConfig(max_lists=each).for_tasks(["grounding", "ocr"]).max_lists == each
    assert FilterConfig(max_lists=each).for_tasks(["ocr"]).max_lists == 500


def test_status_compares_an_artifact_with_the_values_of_its_tasks(tmp_path: Path) -> None:
    config = load(tmp_path, eval__max_new_tokens=LENGTHS)

    def found(variant: str, made_with: object, config: RunConfig = config) -> list[str]:
        manifest = {"stage": "eval", "settings": {"max_new_tokens": made_with}}
        every = differences(("predictions", variant), manifest, config)
        return [str(one) for one in every if one.key == "eval.max_new_tokens"]

    assert found("base@scenes", 20) == found("base@pages", 100) == []
    (said,) = found("base@scenes", 100)
    assert said == "eval.max_new_tokens 100, the configuration says 20"
    unknown = BOTH.replace("{source: testbed, num_prompts: 2}", "{source: jsonl, path: a}")
    config = load(tmp_path, unknown, eval__max_new_tokens=LENGTHS)
    assert found("base@scenes", 20, config) == []
    assert found("base@scenes", 30, config)


@pytest.mark.parametrize(
    ("sets", "fault"),
    [
        (
            {"filter__min_margin": {"grounding": 0.8}},
            "filter.min_margin (--set filter.min_margin={'grounding': 0.8}): names no value for "
            "ocr, a task of train",
        ),
        ({"filter__min_margin": {"grounding": 0.8, "orc": 0.04}}, "did you mean 'ocr'?"),
        ({"filter__min_margin": {"grounding": 2, "ocr": 0}}, "filter.min_margin.grounding"),
        ({"filter__min_margin": {}}, "filter.min_margin"),
        ({"filter__max_lists": {"grounding": 0, "ocr": None}}, "filter.max_lists.grounding"),
        (
            {"eval__max_new_tokens": {"grounding": 1, "ocr": 1, "vqa": 1}},
            "no prompt of scenes and pages has this task",
        ),
        ({"sample__batch_size": {"ocr": 2}}, "names no value for grounding, a task of train"),
        (
            {"filter__max_margin": {"grounding": 1, "ocr": 0.01}, "filter__min_margin": 0.04},
            "max_margin 0.01 is below min_margin 0.04 for ocr: no list fits",
        ),
        ({"train__methods__perpo": {"tasks": ["vqa"]}}, "no prompt of train has the task vqa"),
        ({"train__methods__perpo": {"tasks": ["page"]}}, "train.methods.perpo.tasks.0"),
        ({"train__methods__perpo": {"tasks": []}}, "train.methods.perpo.tasks"),
    ],
)
def test_a_wrong_task_is_one_fault_with_its_key(
    tmp_path: Path, sets: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, **sets)
    assert fault in str(caught.value)
    assert str(caught.value).startswith("1 fault")


def test_a_mapping_in_a_run_of_one_task_names_no_other(tmp_path: Path) -> None:
    text = "run: r\nprepare: {train: {source: testbed, num_prompts: 2}}\neval: {splits: train}\n"
    margin = {"grounding": 0.8, "ocr": 0.04}
    with pytest.raises(ConfigError, match=r"filter\.min_margin\.ocr.*no prompt of train has this"):
        load(tmp_path, text, filter__min_margin=margin)
    assert load(tmp_path, text, filter__min_margin={"grounding": 0.8})
    # Rows of a file say their task themselves: the stage checks them.
    text = text.replace("{source: testbed, num_prompts: 2}", "{source: jsonl, path: a}")
    config = load(tmp_path, text, filter__min_margin=margin)
    with pytest.raises(ConfigError, match=r"no value for vqa(?s:.*)--set filter.min_margin.vqa"):
        check_tasks(config.filter, "filter", ["ocr", "vqa"], "prompts/train")


def test_the_value_of_one_task_can_be_set(tmp_path: Path) -> None:
    both = BOTH + "filter: {min_margin: {grounding: 0.8, ocr: 0.04}}\n"
    config = load(tmp_path, both, filter__min_margin__ocr=0.02)
    assert config.filter.min_margin == {"grounding": 0.8, "ocr": 0.02}
    assert in_words(config.filter.min_margin) == "0.8 (grounding), 0.02 (ocr)"
    assert load(tmp_path, both, filter__min_margin=0.5).filter.min_margin == 0.5


def test_too_few_lists_of_a_task_are_named_with_its_own_remedies() -> None:
    """12 of 100 pages reach 0.04; 40 would reach 0.02. There are 500 lists of boxes."""
    pages = {"lists": 100, "kept": 12, "kept_at": {"0.02": 40, "0.04": 12}, "dropped": {}}
    boxes = {"lists": 600, "kept": 500, "kept_at": {"0.8": 500}, "dropped": {}}
    trainings = {"both": TrainSettings(), "boxes": TrainSettings(tasks=["grounding"])}
    settings = {"min_margin": {"grounding": 0.8, "ocr": 0.04}, "max_lists": 3000}
    (said,) = warn_of_few_lists(trainings, {"grounding": boxes, "ocr": pages}, settings)
    assert said.startswith("ocr alone: 12 lists make 2 optimiser steps of both (batch_size 8, ")
    assert "  - filter.min_margin.ocr 0.02 keeps 40 lists, 5 steps, the most" in said
