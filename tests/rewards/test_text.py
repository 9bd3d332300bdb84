"""Edit similarity against hand-derived values, a plain recursion, and published figures."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perpo_pipeline.rewards.text import edit_similarities, edit_similarity


@pytest.mark.parametrize(
    ("prediction", "ground_truth", "expected"),
    [
        ("kitten", "sitting", 1 - 3 / 7),
        ("", "", 1.0),
        ("", "abc", 0.0),
        ("abc", "", 0.0),
        ("abc", "xyz", 0.0),
        ("same text", "same text", 1.0),
        ("Abc", "abc", 1 - 1 / 3),
        ("a b", "a  b", 1 - 1 / 4),
        ("\u00e9", "e\u0301", 0.0),
        ("\U0001f600x", "x", 1 - 1 / 2),
    ],
    ids=[
        "kitten", "both empty", "no prediction", "no truth", "disjoint", "equal",
        "case counts", "white space counts", "composition counts", "one code point beyond the BMP",
    ],
)  # fmt: skip
def test_edit_similarity_of_texts_derived_by_hand(prediction, ground_truth, expected):
    assert edit_similarity(prediction, ground_truth) == expected
    assert edit_similarities([prediction], [ground_truth]).tolist() == [expected]


def levenshtein(a: str, b: str) -> int:
    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(
            distance(i - 1, j) + 1,
            distance(i, j - 1) + 1,
            distance(i - 1, j - 1) + (a[i - 1] != b[j - 1]),
        )

    return distance(len(a), len(b))


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=8), st.text(max_size=8))
def test_edit_similarity_equals_the_recursive_definition(a, b):
    longest = max(len(a), len(b))
    expected = 1 - levenshtein(a, b) / longest if longest else 1.0
    assert edit_similarity(a, b) == expected


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=8))
def test_many_pairs_give_what_each_gives_alone_whatever_the_workers(pairs):
    predictions, truths = [a for a, _ in pairs], [b for _, b in pairs]
    expected = [edit_similarity(a, b) for a, b in pairs]
    for num_workers in (1, 2, -1):
        found = edit_similarities(predictions, truths, num_workers=num_workers)
        assert found.dtype == np.float64
        assert found.tolist() == expected


def test_unequal_numbers_of_texts_are_refused():
    with pytest.raises(ValueError, match="1 predictions for 2 ground truths"):
        edit_similarities(["a"], ["a", "b"])


def test_fox_edit_distances_are_reproduced(realdata: Path):
    pages = json.loads((realdata / "ocr_fox" / "results_final.json").read_text())
    expected = json.loads((realdata / "ocr_fox" / "expected.json").read_text())
    distances = 1 - edit_similarities([p["answer"] for p in pages], [p["label"] for p in pages])
    published = {row["id"]: row["edit_dist"] for row in expected["per_page_official_call_order"]}
    assert len(pages) == 14
    np.testing.assert_allclose(distances, [published[p["image"]] for p in pages], atol=1e-12)
    assert distances.mean() == pytest.approx(
        expected["mean_corrected_order"]["edit_dist"], abs=1e-12
    )


def test_published_code_point_distances_are_reproduced(realdata: Path):
    pages = json.loads((realdata / "ocr_cer" / "pairs.json").read_text())
    found = edit_similarities([p["ocr"] for p in pages], [p["gt"] for p in pages])
    expected = [1 - p["codepoint_levenshtein"] / max(p["len_gt"], p["len_ocr"]) for p in pages]
    assert len(pages) == 39
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
