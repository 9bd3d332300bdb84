"""Edit similarity against hand-derived values, a plain recursion, and published figures."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from perpo_pipeline.rewards.text import (
    character_accuracies,
    edit_similarities,
    edit_similarity,
    exact_matches,
    token_f1s,
    word_accuracies,
)

MEASURES = (edit_similarities, character_accuracies, word_accuracies, token_f1s, exact_matches)


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
        "kitten",
        "both empty",
        "no prediction",
        "no truth",
        "disjoint",
        "equal",
        "case counts",
        "white space counts",
        "composition counts",
        "one code point beyond the BMP",
    ],
)
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


@pytest.mark.parametrize("measure", MEASURES)
def test_unequal_numbers_of_texts_are_refused(measure):
    with pytest.raises(ValueError, match="1 predictions for 2 ground truths"):
        measure(["a"], ["a", "b"])


@pytest.mark.parametrize("measure", MEASURES)
def test_no_texts_give_no_rewards(measure):
    found = measure([], [])
    assert found.dtype == np.float64 and found.shape == (0,)


@pytest.mark.parametrize(
    ("prediction", "ground_truth", "characters", "words"),
    [
        ("kitten", "sitting", 1 - 3 / 7, 0),
        ("the cat sat", "the cat", 1 - 4 / 7, 1 - 1 / 2),
        ("the cat", "the cat sat", 1 - 4 / 11, 1 - 1 / 3),
        ("cat the", "the cat", 1 - 6 / 7, 0),
        ("The  cat\n", "The cat", 1 - 2 / 7, 1),
        ("a a a a", "a", 0, 0),
        ("abcdef", "ab", 0, 0),
        ("", "", 1, 1),
        (" ", "", 0, 1),
        ("", "a b", 0, 0),
        ("a b", "", 0, 0),
    ],
)
def test_error_rates_of_texts_derived_by_hand(prediction, ground_truth, characters, words):
    """`cat the` for `the cat`: all 6 letters and both words are substituted."""
    found = character_accuracies([prediction], [ground_truth])
    assert found.tolist() == pytest.approx([characters], abs=1e-15)
    found = word_accuracies([prediction], [ground_truth])
    assert found.tolist() == pytest.approx([words], abs=1e-15)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.text("ab ", max_size=8), st.text("ab ", max_size=8)), max_size=5))
def test_error_rates_equal_the_recursive_definition(pairs):
    predictions, truths = [a for a, _ in pairs], [b for _, b in pairs]

    def accuracy(a, b):
        return max(0.0, 1 - levenshtein(a, b) / len(b)) if b else float(not a)

    for num_workers in (1, 2):
        found = character_accuracies(predictions, truths, num_workers=num_workers)
        np.testing.assert_allclose(found, [accuracy(a, b) for a, b in pairs], atol=1e-15)
        found = word_accuracies(predictions, truths, num_workers=num_workers)
        expected = [accuracy(tuple(a.split()), tuple(b.split())) for a, b in pairs]
        np.testing.assert_allclose(found, expected, atol=1e-15)


@pytest.mark.parametrize(
    ("prediction", "ground_truth", "f1", "exact"),
    [
        ("The Cat.", "cat", 1, 1),
        ("a black cat", "the cat", 2 / 3, 0),
        ("cat cat dog", "cat dog dog", 2 / 3, 0),
        ("dog cat", "cat dog", 1, 0),
        ("it's", "its", 1, 1),
        ("theatre", "re", 0, 0),
        ("caf\u00e9", "cafe", 0, 0),
        ("", "", 1, 1),
        ("the.", "a", 0, 0),
        ("A", "A", 1, 1),
        ("(a).", "A", 1, 1),
        ("B", "A", 0, 0),
        ("", "A", 0, 0),
        ("...", "A", 0, 0),
        ("A cat", "A", 2 / 3, 0),
        ("Vitamin A", "vitamin", 1, 1),
        ("?", "?", 1, 1),
        ("", "?", 0, 0),
        ("a", "", 1, 1),
        ("", "cat", 0, 0),
        ("cat", "the", 0, 0),
    ],
)
def test_word_overlap_derived_by_hand(prediction, ground_truth, f1, exact):
    assert token_f1s([prediction], [ground_truth]).tolist() == pytest.approx([f1], abs=1e-15)
    assert exact_matches([prediction], [ground_truth]).tolist() == [exact]


words = st.lists(
    st.sampled_from(["the", "A", "an", "cat", "Cat.", "dog", "--", "\u00c9t\u00e9", "don't", "x_y"])
    | st.text(max_size=4),
    max_size=6,
).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(words, words)
def test_word_overlap_equals_the_squad_script_in_transformers(a, b):
    """The script takes the truth "A" for no words at all, which any other such answer equals."""
    oracle = pytest.importorskip("transformers.data.metrics.squad_metrics")
    assume(oracle.get_tokens(b) or not b.strip())
    assert token_f1s([a], [b])[0] == pytest.approx(oracle.compute_f1(b, a), abs=1e-12)
    assert exact_matches([a], [b])[0] == oracle.compute_exact(b, a)


any_text = st.text(alphabet=st.characters(codec=None), max_size=12)


@pytest.mark.parametrize("measure", MEASURES)
@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(any_text, any_text), max_size=5))
def test_any_texts_give_a_reward_between_0_and_1(measure, pairs):
    """Lone surrogates among them."""
    found = measure([a for a, _ in pairs], [b for _, b in pairs])
    assert found.dtype == np.float64 and found.shape == (len(pairs),)
    assert ((found >= 0) & (found <= 1)).all()
    assert measure([a for a, _ in pairs], [a for a, _ in pairs]).tolist() == [1.0] * len(pairs)


def test_a_lone_surrogate_is_one_character_among_others():
    assert edit_similarities(["a\ud800", "\udfff"], ["a", "\ud800"]).tolist() == [0.5, 0]
    assert character_accuracies(["a\ud800"], ["ab"]).tolist() == [0.5]
    assert word_accuracies(["a \ud800"], ["a b"]).tolist() == [0.5]
    assert token_f1s(["a cat\ud800"], ["cat\ud800"]).tolist() == [1]


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
    found = character_accuracies([p["ocr"] for p in pages], [p["gt"] for p in pages])
    expected = [1 - min(1, p["codepoint_levenshtein"] / p["len_gt"]) for p in pages]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
