"""The names of evaluations, and which a run has."""

from hypothesis import given, settings
from hypothesis import strategies as st

from perpo_pipeline.config.eval import EvalConfig
from perpo_pipeline.config.evaluations import (
    BLANK_IMAGE,
    OTHER_IMAGE,
    Evaluation,
    model_of,
    read_evaluation,
)
from perpo_pipeline.config.section import NAME_PATTERN

NAMES = st.from_regex(NAME_PATTERN, fullmatch=True)


@settings(max_examples=100)
@given(
    st.builds(
        Evaluation,
        NAMES.filter(lambda name: model_of(name) == name),
        NAMES,
        st.sampled_from(["", OTHER_IMAGE, BLANK_IMAGE]),
    )
)
def test_a_name_says_which_evaluation_it_is(evaluation: Evaluation) -> None:
    assert read_evaluation(evaluation.name) == evaluation


def test_names_are_a_model_an_image_and_a_split() -> None:
    assert Evaluation("perpo", "refcoco_val").name == "perpo@refcoco_val"
    assert read_evaluation("perpo-seed7-blank-image@my.set") == Evaluation(
        "perpo-seed7", "my.set", BLANK_IMAGE
    )
    assert read_evaluation("pages") == Evaluation("pages", "")


def names(**eval_settings: object) -> list[str]:
    config = EvalConfig.model_validate(eval_settings)
    return [evaluation.name for evaluation in config.evaluations_of("perpo")]


def test_every_split_has_an_evaluation_and_the_first_has_those_with_wrong_images() -> None:
    wrong = ["perpo-other-image@val", "perpo-blank-image@val"]
    assert names(splits=["val", "mine"]) == ["perpo@val", "perpo@mine", *wrong]
    assert names(splits="val", conditions=[]) == ["perpo@val"]
    assert names() == ["perpo@test", "perpo-other-image@test", "perpo-blank-image@test"]


def test_condition_splits_choose_the_splits_with_wrong_images() -> None:
    assert names(
        splits=["val", "mine"], condition_splits=["mine", "val"], conditions=["blank-image"]
    ) == ["perpo@val", "perpo@mine", "perpo-blank-image@mine", "perpo-blank-image@val"]
