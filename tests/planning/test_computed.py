"""Computed speeds against arithmetic by hand and a step that was measured."""

from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_run import synthetic_config

from perpo_pipeline.machine import GIB
from perpo_pipeline.planning.amounts import Lists
from perpo_pipeline.planning.computed import computed_rates
from perpo_pipeline.planning.hardware import describe_hardware, published
from perpo_pipeline.planning.model import Model, _published_shape
from perpo_pipeline.planning.rates import Rates
from perpo_pipeline.planning.sampling import expect_sampling
from perpo_pipeline.planning.tokens import (
    Answers,
    PromptTokens,
    expect_answers,
    measured_answers,
)
from perpo_pipeline.planning.training import Training, expect_training, remedies
from perpo_pipeline.run import Run

ID = "llava-hf/llava-1.5-7b-hf"
RECORD = published()["models"][ID]
SHAPE = _published_shape(RECORD, half=True)
MODEL = Model(ID, True, None, SHAPE, RECORD, None, None, None, "")
TOKENS = PromptTokens([576], [60], [26], "")
ANSWERS = Answers((26, 26), (20, 20), "")
LISTS = Lists(3000, 3000, "")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    config = synthetic_config(tmp_path, methods=("perpo", "sft"))
    return Run(
        config.model_copy(
            update={
                "sample": config.sample.model_copy(update={"num_samples": 20, "max_new_tokens": 64})
            }
        )
    )


def training(run: Run, name: str, size: int = 1) -> Training:
    settings = run.config.train.variants()[name]
    found = expect_training(name, settings, 3000, MODEL, TOKENS, ANSWERS, size, on_gpu=True)
    assert found is not None
    return found


def test_a_list_of_1156_tokens_takes_its_operations_at_the_stated_share_of_the_peak(
    run: Run,
) -> None:
    """4 x 7.06e9 x 1,156 = 32.7 TFLOP; at 989 TFLOP/s x 0.5 that is 66 ms, at x 0.2 165 ms.

    A step of these shapes took 66.6 ms on an H200 (benchmarks/RESULTS.md), without image files.
    """
    hardware = describe_hardware("h200")
    some = [training(run, "perpo"), training(run, "sft")]
    rates = computed_rates(run, hardware, SHAPE, TOKENS, ANSWERS, some, backend="transformers")
    perpo = rates["train", "perpo"]
    assert perpo.low == pytest.approx(4 * 7.063e9 * 1156 / 989e12 / 0.5, rel=1e-3)
    assert perpo.high == pytest.approx(2.5 * perpo.low)
    assert perpo.low < 0.0666 < perpo.high
    compiling = published()["compile"]["seconds"]
    evaluation = rates["eval", ""].start  # reads the same weights and compiles nothing
    assert perpo.start == pytest.approx([a + b for a, b in zip(evaluation, compiling, strict=True)])
    assert rates["train", "sft"].start == evaluation  # finds what was compiled
    assert rates["train", "sft"].low == pytest.approx(perpo.low * 662 / 1156)
    assert rates["reference", ""].low == pytest.approx(perpo.low / 2)
    blank = rates["reference", "blank"].low  # the prompt and one answer of 26 tokens
    assert blank == pytest.approx(rates["reference", ""].low * 662 / 1156)
    eight = computed_rates(
        run, describe_hardware("h200x8"), SHAPE, TOKENS, ANSWERS, some, backend="transformers"
    )
    assert eight["train", "perpo"].low == pytest.approx(perpo.low / 8)


def test_separate_rows_read_the_prompt_once_for_each_answer_that_a_method_trains_on(
    tmp_path: Path,
) -> None:
    """SFT one, DPO two, mDPO three (one behind a blank image), PerPO and the reference all 20."""
    methods = {"sft": 1, "dpo": 2, "mdpo": 3, "perpo": 20}
    run = Run(synthetic_config(tmp_path, methods=tuple(methods)))
    hardware = describe_hardware("h200")

    def rates_of(answers: Answers, some: list[Training]) -> Rates:
        return computed_rates(run, hardware, SHAPE, TOKENS, answers, some, backend="transformers")

    some = [replace(training(run, name), forward="separate") for name in methods]
    rates = rates_of(ANSWERS, some)
    row = 7.063e9 * 662 / 989e12 / 0.5
    for name, rows in methods.items():
        assert rates["train", name].low == pytest.approx(4 * rows * row, rel=1e-3)
    assert rates["reference", ""].low == pytest.approx(2 * 20 * row, rel=1e-3)
    assert rates["reference", "blank"].low == pytest.approx(2 * row, rel=1e-3)
    of_four = rates_of(replace(ANSWERS, distinct=(2, 4)), some)
    assert of_four["train", "perpo"].low == pytest.approx(4 * 2 * row, rel=1e-3)
    assert of_four["train", "perpo"].high == pytest.approx(2.5 * 4 * 4 * row, rel=1e-3)
    assert rates_of(ANSWERS, [])["reference", ""].low == pytest.approx(
        2 * 1156 / 662 * row, rel=1e-3
    )


@pytest.mark.parametrize(("size", "most"), [(None, 20), (4, 4), (30, 20)])
def test_a_list_has_as_many_answers_as_the_filter_takes(
    run: Run, size: int | None, most: int
) -> None:
    filtered = run.config.filter.model_copy(update={"list_size": size})
    limited = Run(run.config.model_copy(update={"filter": filtered}))
    assert expect_answers(limited, TOKENS).distinct == (2, most)
    ids = [[1], [1], [2], [3], [4], [5]]
    assert measured_answers(ids, 3, size and 2).distinct == ((1.5, 1.5) if size else (2.5, 2.5))


def test_writing_reads_all_weights_once_per_token_of_a_small_batch(run: Run) -> None:
    """16 rows: 14.1 GB per token / (4.8 TB/s x 0.6) / 16 rows; reading 636 tokens comes first."""
    hardware = describe_hardware("h200")
    rates = computed_rates(run, hardware, SHAPE, TOKENS, ANSWERS, [], backend="transformers")
    rows = run.config.eval.batch_size
    token = max(2 * 7.063e9 / 4.8e12 / 0.6 / rows, 2 * 7.063e9 / 989e12 / 0.5)
    expected = 2 * 7.063e9 * 636 / 989e12 / 0.5 + 26 * token
    assert rates["eval", ""].low == pytest.approx(expected, rel=1e-3)


def test_a_24_gib_card_needs_checkpointing_for_lists_of_a_7b_model(run: Run) -> None:
    """Weights alone are 14.1e9 / 2^30 = 13.2 GiB; 8 lists in a forward keep 42 GiB."""
    found = training(run, "perpo")
    assert found.steps == 375
    assert found.memory().weights / GIB == pytest.approx(13.16, abs=0.01)
    card = describe_hardware("rtx4090").memory
    assert found.memory().total > card
    ((settings, estimate),) = remedies(found, card)
    assert "train.gradient_checkpointing=true" in settings
    assert estimate.total < 0.9 * card


def test_a_batch_that_is_too_large_for_the_card_is_answered_with_one_that_fits(run: Run) -> None:
    """A token's keys and values: 32 layers x 2 x 4,096 x 2 bytes = 512 KiB.

    A prompt with 20 answers of 64 has 1,916 tokens, 0.936 GiB; to read its 636 tokens takes 636 x
    (3 x 11,008 + 4 x 4,096) x 2 bytes = 0.0585 GiB. (0.9 x 24 - 13.16 - 0.6) / 0.994 = 7.89.
    """
    found = expect_sampling(run, MODEL, TOKENS, "transformers")
    assert found is not None
    assert found.cache_per_prompt / GIB == pytest.approx(0.9355, abs=1e-3)
    shown = found.describe(0.9 * 24 * GIB, "24 GiB")
    assert "is too much for 24 GiB: sample.batch_size=7 fits" in shown
    assert "fits into 80 GiB" in found.describe(0.9 * 80 * GIB, "80 GiB")


def test_a_hybrid_keeps_states_for_the_prompt_and_for_each_answer(run: Run) -> None:
    """Half of the layers have keys and values; 3,000 bytes of states for each of 1 + 20."""
    plain = expect_sampling(run, MODEL, TOKENS, "transformers")
    hybrid = replace(MODEL, shape=replace(SHAPE, recurrent=16, state_bytes=3000))
    found = expect_sampling(run, hybrid, TOKENS, "transformers")
    assert plain is not None and found is not None
    assert found.cache_per_prompt == plain.cache_per_prompt / 2 + 21 * 3000
