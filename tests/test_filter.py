"""Which lists are kept, with the exact reason for each that is not."""

import pyarrow as pa
import pytest

from perpo_pipeline.config import FilterConfig
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.filter import gather_lists, select_lists, summarise


def tables(
    lists: dict[str, list[tuple[list[int], float, bool]]],
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Samples, scores and prompts of (token ids, reward, parse_ok) by prompt."""
    rows = [(key, i, *entry) for key, entries in lists.items() for i, entry in enumerate(entries)]
    keys = {
        "prompt_id": [r[0] for r in rows],
        "sample_id": pa.array([r[1] for r in rows], pa.int32()),
    }
    samples = pa.table(
        {
            **keys,
            "completion": [str(r[2]) for r in rows],
            "completion_token_ids": pa.array([r[2] for r in rows], pa.list_(pa.int32())),
            "finish_reason": ["stop"] * len(rows),
        }
    )
    scores = pa.table({**keys, "reward": [r[3] for r in rows], "parse_ok": [r[4] for r in rows]})
    prompts = pa.table({"prompt_id": list(lists), "task": ["grounding"] * len(lists)})
    return samples, scores, prompts


def one(rewards: list[float]) -> list[tuple[list[int], float, bool]]:
    return [([i], reward, True) for i, reward in enumerate(rewards)]


def test_identical_completions_merge_and_rewards_descend() -> None:
    given = {"a": [([1, 2], 0.2, True), ([3], 0.9, True), ([1, 2], 0.2, True), ([4], 0.5, True)]}
    (row,) = gather_lists(*tables(given))
    assert row["completion_token_ids"] == [[3], [4], [1, 2]]
    assert row["rewards"] == [0.9, 0.5, 0.2]
    assert row["counts"] == [1, 1, 2]
    assert row["margin"] == pytest.approx(0.7)


def test_lists_are_kept_in_order_and_dropped_with_exact_reasons() -> None:
    given = {"wide": one([0.9, 0.0]), "flat": one([0.5, 0.5]), "narrow": one([0.5, 0.4]),
             "edge": one([0.9, 0.1])}  # fmt: skip
    kept, dropped = select_lists(gather_lists(*tables(given)), FilterConfig(min_margin=0.8))
    assert [row["prompt_id"] for row in kept] == ["wide", "edge"]
    assert {row["prompt_id"]: row["reason"] for row in dropped} == {
        "flat": "no_preference",
        "narrow": "margin_too_small",
    }


def test_a_tied_list_is_dropped_even_where_no_margin_is_asked_for() -> None:
    lists = gather_lists(*tables({"flat": one([0.5, 0.5]), "ok": one([0.5, 0.4])}))
    kept, dropped = select_lists(lists, FilterConfig(min_margin=0.0))
    assert [row["prompt_id"] for row in kept] == ["ok"]
    assert dropped[0]["reason"] == "no_preference"


def test_the_cap_chooses_independently_of_row_order_and_keeps_the_rest_aside() -> None:
    names = [f"p{i}" for i in range(50)]
    config = FilterConfig(min_margin=0.1, max_lists=10)
    forward = select_lists(gather_lists(*tables({n: one([1.0, 0.0]) for n in names})), config)
    backward = select_lists(
        gather_lists(*tables({n: one([1.0, 0.0]) for n in names[::-1]})), config
    )
    chosen = [row["prompt_id"] for row in forward[0]]
    assert len(chosen) == 10 and chosen == sorted(chosen, key=names.index)
    assert set(chosen) == {row["prompt_id"] for row in backward[0]}
    assert [row["reason"] for row in forward[1]] == ["over_cap"] * 40
    other = select_lists(
        gather_lists(*tables({n: one([1.0, 0.0]) for n in names})),
        FilterConfig(min_margin=0.1, max_lists=10, seed=1),
    )
    assert {row["prompt_id"] for row in other[0]} != set(chosen)


def test_the_summary_tells_how_much_of_the_margin_unparsed_answers_make() -> None:
    """Margins 0.9 and 0.8; without the unparsed answer the first is 0.9 - 0.6 = 0.3."""
    given = {"a": [([1], 0.9, True), ([2], 0.6, True), ([3], 0.0, False)], "b": one([0.9, 0.1])}
    kept, dropped = select_lists(gather_lists(*tables(given)), FilterConfig(min_margin=0.8))
    counts = summarise(kept, dropped, 0.8)
    assert counts["mean_margin"] == pytest.approx(0.85)
    assert counts["margin_from_unparsed"] == pytest.approx(0.3)
    assert counts["kept_by_unparsed_only"] == 1


def test_scores_of_other_samples_are_refused() -> None:
    samples, scores, prompts = tables({"a": one([0.9, 0.0])})
    with pytest.raises(ArtifactError, match="not have the same rows"):
        gather_lists(samples, scores.slice(1), prompts)
