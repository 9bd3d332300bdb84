"""Lists: merged, ranked, and the pair that M3PO takes."""

import math

import polars as pl
import pytest

from perpo_pipeline.config.filter import FilterConfig
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.filter.lists import build_lists, left_out

Entry = tuple[list[int], float, bool]


def rows(
    lists: dict[str, list[Entry]], logprobs: dict[str, list[float | None]] | None = None
) -> pl.DataFrame:
    """Samples with their rewards: (token ids, reward, parse_ok) by prompt."""
    found = [
        {
            "prompt_id": key,
            "sample_id": i,
            "completion": str(ids),
            "completion_token_ids": ids,
            "finish_reason": "stop",
            "sampler_logprob": None if logprobs is None else logprobs[key][i],
            "reward": reward,
            "parse_ok": parse_ok,
        }
        for key, entries in lists.items()
        for i, (ids, reward, parse_ok) in enumerate(entries)
    ]
    return pl.DataFrame(
        found, schema_overrides={"sampler_logprob": pl.Float64, "sample_id": pl.Int32}
    )


TASKS = {"a": "grounding"}
ANY = FilterConfig(min_margin=0.0)


def test_identical_completions_merge_and_rewards_descend() -> None:
    given = {"a": [([1, 2], 0.2, True), ([3], 0.9, True), ([1, 2], 0.2, True), ([4], 0.5, True)]}
    (row,) = build_lists(rows(given), TASKS, ANY)
    assert row["completion_token_ids"] == [[3], [4], [1, 2]]
    assert row["rewards"] == [0.9, 0.5, 0.2]
    assert row["counts"] == [1, 1, 2]
    assert row["margin"] == pytest.approx(0.7)


def test_only_the_first_completions_count_and_the_others_are_kept_aside() -> None:
    given = {"a": [([1], 0.2, True), ([2], 0.9, True), ([3], 1.0, True)]}
    config = FilterConfig(min_margin=0.0, list_size=2)
    lists = build_lists(rows(given), TASKS, config)
    assert lists[0]["rewards"] == [0.9, 0.2]
    aside = left_out(rows(given), lists, config)
    assert aside.rows() == [("a", 2, "beyond_list_size", None)]


def test_unparsed_completions_are_left_out_if_the_settings_say_so() -> None:
    given = {"a": [([1], 0.2, True), ([2], 0.0, False), ([3], 1.0, True)]}
    config = FilterConfig(min_margin=0.0, drop_unparsed=True)
    lists = build_lists(rows(given), TASKS, config)
    assert lists[0]["rewards"] == [1.0, 0.2]
    assert left_out(rows(given), lists, config).rows() == [("a", 1, "unparsed", None)]
    kept = build_lists(rows(given), TASKS, ANY)
    assert kept[0]["rewards"] == [1.0, 0.2, 0.0]
    assert left_out(rows(given), kept, ANY).height == 0


M3PO = FilterConfig(min_margin=0.0, strategy="m3po")


def test_m3po_rejects_the_confident_bad_answer_not_the_worst() -> None:
    """Worked by hand. Four completions of two tokens each:

    reward  log p  confidence  rank   gap   gap x rank
    0.9     -4     -2          2/4    -     chosen
    0.6     -1     -0.5        4/4    0.3   0.3
    0.3     -2     -1          3/4    0.6   0.45       rejected
    0.1     -6     -3          1/4    0.8   0.2        the worst, which nobody believes
    """
    given = {
        "a": [([1, 9], 0.9, True), ([2, 9], 0.6, True), ([3, 9], 0.3, True), ([4, 9], 0.1, False)]
    }
    table = rows(given, {"a": [-4.0, -1.0, -2.0, -6.0]})
    (row,) = build_lists(table, TASKS, M3PO)
    assert row["rewards"] == [0.9, 0.3]
    assert row["completion_token_ids"] == [[1, 9], [3, 9]]
    assert row["counts"] == [1, 1]
    aside = left_out(table, [row], M3PO)
    assert aside["sample_id"].to_list() == [1, 3]
    assert set(aside["reason"]) == {"not_in_the_pair"}


def test_m3po_looks_at_confidence_per_token() -> None:
    """The long answer is surer per token: -4 / 4 = -1 against -2 / 1 = -2; ranks 2/3 and 1/3.

    Gaps 0.5 x 2/3 = 0.33 and 0.6 x 1/3 = 0.2; by summed log-probabilities it would be the other.
    """
    given = {"a": [([1], 1.0, True), ([2, 2, 2, 2], 0.5, True), ([3], 0.4, True)]}
    (row,) = build_lists(rows(given, {"a": [-0.5, -4.0, -2.0]}), TASKS, M3PO)
    assert row["rewards"] == [1.0, 0.5]


def test_m3po_does_not_depend_on_the_order_of_the_list() -> None:
    entries = [([1], 0.9, True), ([2], 0.9, True), ([3], 0.1, True), ([4], 0.1, True)]
    logprobs: list[float | None] = [-1.0, -1.0, -1.0, -1.0]
    forward = build_lists(rows({"a": entries}, {"a": logprobs}), TASKS, M3PO)
    backward = build_lists(rows({"a": entries[::-1]}, {"a": logprobs}), TASKS, M3PO)
    assert forward[0]["completion_token_ids"] == backward[0]["completion_token_ids"]


def test_m3po_without_the_samplers_log_probabilities_says_what_to_do() -> None:
    given = {"a": [([1], 0.9, True), ([2], 0.1, True)]}
    with pytest.raises(ArtifactError, match=r"sample 0 of prompt a has none"):
        build_lists(rows(given), TASKS, M3PO)
    assert not math.isnan(build_lists(rows(given), TASKS, ANY)[0]["margin"])


def test_copies_of_the_pair_are_kept_aside_too() -> None:
    """Six samples, the chosen one three times, the rejected one twice: 2 are the pair, 4 aside."""
    entries = [([1], 0.9, True)] * 3 + [([2], 0.1, True)] * 2 + [([3], 0.5, True)]
    table = rows({"a": entries}, {"a": [-1.0, -1.0, -1.0, -1.0, -1.0, -9.0]})
    lists = build_lists(table, TASKS, M3PO)
    aside = left_out(table, lists, M3PO)
    assert lists[0]["completion_token_ids"] == [[1], [2]]
    assert list(zip(aside["sample_id"], aside["reason"], strict=True)) == [
        (1, "copy_in_the_pair"),
        (2, "copy_in_the_pair"),
        (4, "copy_in_the_pair"),
        (5, "not_in_the_pair"),
    ]


def test_m3po_refuses_a_confidence_that_is_no_number() -> None:
    given = {"a": [([1], 0.9, True), ([2], 0.1, True)]}
    with pytest.raises(ArtifactError, match="sample 1 of prompt a has none"):
        build_lists(rows(given, {"a": [-1.0, math.nan]}), TASKS, M3PO)
