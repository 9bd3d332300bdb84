"""The warning that lists are too few, with figures that are counted by hand."""

from typing import Any

from perpo_pipeline.config.steps import count_steps, lists_for, warn_of_few_steps
from perpo_pipeline.config.train import TrainSettings

EIGHT_PHOTOS: dict[str, Any] = {
    "lists": 8,
    "kept": 2,
    "kept_at": {"0.0": 7, "0.4": 7, "0.5": 3, "0.8": 2, "0.9": 0, "1.0": 0},
}


def test_steps_are_whole_batches_of_every_epoch() -> None:
    assert count_steps(2, TrainSettings()) == 1
    assert count_steps(17, TrainSettings(epochs=2)) == 6
    assert count_steps(16, TrainSettings(epochs=0.25)) == 1  # a quarter of 2 steps, rounded up
    assert lists_for(50, TrainSettings()) == 400
    assert lists_for(50, TrainSettings(epochs=3)) == 17 * 8


def test_two_lists_of_eight_photos_are_said_to_be_one_step_with_every_remedy() -> None:
    said = warn_of_few_steps(2, {"perpo": TrainSettings()}, EIGHT_PHOTOS, 0.8)
    assert said is not None
    first, *remedies = said.splitlines()
    assert first.startswith("2 lists make 1 optimiser step of perpo (batch_size 8, epochs 1)")
    assert "50 steps need about 400 lists" in first and "docs/choosing.md" in first
    assert remedies == [
        "  - filter.min_margin 0.5 keeps 3 lists, 1 step; min_margin 0.4 keeps 7 lists, 1 step, "
        "which is all that these samples can give",
        "  - more prompts: 2 of 8 prompts gave a list, so 200 more would give about 50 lists; 400 "
        "lists need about 1,592 more prompts",
        "  - train.epochs 50 makes 50 steps or more, but of the same lists again",
    ]


def test_the_highest_threshold_that_is_enough_is_named_and_a_cap_is_lifted() -> None:
    counts = {"kept_at": {"0.0": 900, "0.4": 600, "0.6": 410, "0.8": 150}, "lists": 1000}
    counts |= {"kept": 100, "dropped": {"over_cap": 50}}
    said = warn_of_few_steps(100, {"dpo": TrainSettings(), "sft": TrainSettings()}, counts, 0.8)
    assert said is not None and "13 optimiser steps of dpo and 1 more" in said
    assert "  - filter.min_margin 0.6 keeps 410 lists, 52 steps\n" in said
    assert "  - filter.max_lists null keeps 150 lists, 19 steps\n" in said


def test_enough_steps_say_nothing_and_missing_counts_leave_only_what_is_known() -> None:
    assert warn_of_few_steps(400, {"perpo": TrainSettings()}, EIGHT_PHOTOS, 0.8) is None
    assert warn_of_few_steps(40, {"perpo": TrainSettings(epochs=10)}, EIGHT_PHOTOS, 0.8) is None
    said = warn_of_few_steps(1, {"perpo": TrainSettings()}, {}, 0.8)
    assert said is not None and said.startswith("1 list makes 1 optimiser step")
    assert said.count("\n  - ") == 1 and "train.epochs 50" in said
