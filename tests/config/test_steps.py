"""The warning that lists are too few, with figures that are counted by hand."""

from typing import Any

from perpo_pipeline.config.steps import (
    count_steps,
    lists_for,
    warn_of_few_lists,
    warn_of_few_steps,
)
from perpo_pipeline.config.train import TrainSettings

EIGHT_PHOTOS: dict[str, Any] = {
    "lists": 8,
    "kept": 2,
    "kept_at": {"0.0": 7, "0.4": 7, "0.5": 3, "0.8": 2, "0.9": 0, "1.0": 0},
}


KEPT: dict[str, Any] = {"min_margin": 0.8, "max_lists": 3000}


def test_steps_are_whole_batches_of_every_epoch() -> None:
    assert count_steps(2, TrainSettings()) == 1
    assert count_steps(17, TrainSettings(epochs=2)) == 6
    assert count_steps(16, TrainSettings(epochs=0.25)) == 1  # a quarter of 2 steps, rounded up
    assert lists_for(50, TrainSettings()) == 400
    assert lists_for(50, TrainSettings(epochs=3)) == 17 * 8


def test_two_lists_of_eight_photos_are_said_to_be_one_step_with_every_remedy() -> None:
    said = warn_of_few_steps(2, {"perpo": TrainSettings()}, EIGHT_PHOTOS, KEPT)
    assert said is not None
    first, *remedies = said.splitlines()
    assert first.startswith("2 lists make 1 optimiser step of perpo (batch_size 8, epochs 1)")
    assert "50 steps need about 400 lists" in first and "docs/choosing.md" in first
    assert remedies == [
        "  - filter.min_margin 0.5 keeps 3 lists, 1 step; min_margin 0.4 keeps 7 lists, 1 step, "
        "the most that these samples can give",
        "  - more prompts: 2 of 8 gave a list, so 200 more would give about 50 lists; 400 "
        "lists need about 1,592 more prompts",
        "  - train.epochs 50 makes 50 steps or more, but from the same lists again",
    ]


def test_the_highest_threshold_that_is_enough_is_named_as_far_as_the_cap_allows() -> None:
    counts = {"kept_at": {"0.0": 900, "0.4": 600, "0.6": 410, "0.8": 150}, "lists": 1000}
    counts |= {"kept": 150}
    trainings = {"dpo": TrainSettings(), "sft": TrainSettings()}
    said = warn_of_few_steps(150, trainings, counts, KEPT)
    assert said is not None and "19 optimiser steps of dpo and sft (batch_size 8, " in said
    assert "  - filter.min_margin 0.6 keeps 410 lists, 52 steps\n" in said
    said = warn_of_few_steps(150, trainings, counts, {"min_margin": 0.8, "max_lists": 200})
    assert said is not None and "min_margin 0.6 keeps 200 lists, 25 steps, the most" in said


def test_where_the_cap_is_reached_it_is_the_remedy_and_not_the_threshold() -> None:
    """160 of 228 lists stay under the cap: 228 / 240 of the prompts gave a list."""
    counts = {"lists": 240, "kept": 160, "dropped": {"over_cap": 68}, "kept_at": {"0.7": 234}}
    settings = {"min_margin": 0.8, "max_lists": 160}
    said = warn_of_few_steps(160, {"perpo": TrainSettings()}, counts, settings)
    assert said is not None and "min_margin" not in said
    assert "  - filter.max_lists null keeps 228 lists, 29 steps\n" in said
    assert (
        "  - more prompts: 228 of 240 gave a list, so 200 more would give about 190 lists; 400 "
        "lists need about 182 more prompts, and filter.max_lists of 400 or more\n"
    ) in said


def test_enough_steps_say_nothing_and_missing_counts_leave_only_what_is_known() -> None:
    assert warn_of_few_steps(400, {"perpo": TrainSettings()}, EIGHT_PHOTOS, KEPT) is None
    assert warn_of_few_steps(40, {"perpo": TrainSettings(epochs=10)}, EIGHT_PHOTOS, KEPT) is None
    said = warn_of_few_steps(1, {"perpo": TrainSettings()}, {}, {})
    assert said is not None and said.startswith("1 list makes 1 optimiser step")
    assert said.count("\n  - ") == 1 and "train.epochs 50" in said


def test_earlier_lists_make_steps_and_no_remedy_changes_them() -> None:
    """2 new lists and 40 earlier ones; a margin of 0.5 would keep one new list more."""
    said = warn_of_few_steps(42, {"perpo": TrainSettings()}, EIGHT_PHOTOS, KEPT, earlier=40)
    assert said is not None
    first, *remedies = said.splitlines()
    assert first.startswith("42 lists make 6 optimiser steps of perpo")
    assert remedies == [
        "  - filter.min_margin 0.5 keeps 43 lists, 6 steps; min_margin 0.4 keeps 47 lists, 6 "
        "steps, the most that these samples can give",
        "  - more prompts: 2 of 8 gave a list, so 200 more would give about 50 lists; 360 new "
        "lists need about 1,432 more prompts",
        "  - train.epochs 9 makes 50 steps or more, but from the same lists again",
    ]


def test_a_task_without_a_list_is_named_without_remedies_that_need_one() -> None:
    counts = {"grounding": {"kept": 0, "lists": 8, "kept_at": {"0.0": 0}}, "ocr": {"kept": 400}}
    (said,) = warn_of_few_lists({"perpo": TrainSettings()}, counts, KEPT)
    assert said.startswith("grounding alone: 0 lists make 0 optimiser steps of perpo")
    assert "What would help" not in said


def test_a_task_that_has_earlier_lists_alone_is_counted_by_itself() -> None:
    """No setting by task names it, and trainings that do not learn it are not warned of it."""
    trainings = {"both": TrainSettings(), "boxes": TrainSettings(tasks=["grounding"])}
    new = {"grounding": {"kept": 390}}
    settings = {"min_margin": {"grounding": 0.8}, "max_lists": 3000}
    (said,) = warn_of_few_lists(trainings, new, settings, {"grounding": 10, "ocr": 16})
    assert said.startswith("ocr alone: 16 lists make 2 optimiser steps of both (batch_size 8, ")
    (said,) = warn_of_few_lists(trainings, new, settings, {"grounding": 1})
    assert said.startswith("391 lists make 49 optimiser steps of both and boxes (")
