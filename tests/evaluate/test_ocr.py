"""OCR metrics against Fox's own functions, published error rates, and values by hand."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perpo_pipeline.evaluate import ocr, wordnet
from perpo_pipeline.evaluate.ocr import (
    FOX_METRICS,
    character_edits,
    character_error_rate,
    corpus_error_rates,
    fox_metrics,
    word_error_rate,
)

FOX_NAMES = {
    "bleu": "bleu",
    "meteor": "meteor",
    "f_measure": "f1",
    "precision": "precision",
    "recall": "recall",
    "edit_dist": "edit_distance",
}
needs_wordnet = pytest.mark.skipif(
    wordnet.find_wordnet() is None, reason="METEOR needs WordNet: apt-get install wordnet-base"
)


@pytest.mark.parametrize(
    ("fox_compat", "order"), [(True, "official_call_order"), (False, "corrected_order")]
)
def test_foxs_own_figures_are_reproduced_in_both_orders(realdata: Path, fox_compat, order):
    pages = json.loads((realdata / "ocr_fox" / "results_final.json").read_text())
    expected = json.loads((realdata / "ocr_fox" / "expected.json").read_text())
    found = [fox_metrics(p["answer"], p["label"], fox_compat=fox_compat) for p in pages]
    per_page = {row["id"]: row for row in expected[f"per_page_{order}"]}
    names = {k: v for k, v in FOX_NAMES.items() if v in found[0]}
    assert len(pages) == 14 and len(names) >= 5
    for theirs, ours in names.items():
        values = [metrics[ours] for metrics in found]
        truth = [per_page[page["image"]][theirs] for page in pages]
        np.testing.assert_allclose(values, truth, rtol=0, atol=1e-9)
        assert np.mean(values) == pytest.approx(expected[f"mean_{order}"][theirs], abs=1e-9)


@needs_wordnet
def test_meteor_is_measured_if_wordnet_is_installed():
    assert set(fox_metrics("a b", "a b")) == set(FOX_METRICS)


def test_metrics_of_a_page_by_hand():
    """Tokens {a, b, c} against {a, b, d, e}: 2 shared; the texts differ by 3 edits of 7."""
    found = fox_metrics("a b c", "a b d e")
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["recall"] == pytest.approx(2 / 4)
    assert found["f1"] == pytest.approx(4 / 7)
    assert found["edit_distance"] == pytest.approx(3 / 7)
    swapped = fox_metrics("a b c", "a b d e", fox_compat=True)
    assert (swapped["precision"], swapped["recall"]) == (found["recall"], found["precision"])
    assert swapped["edit_distance"] == found["edit_distance"]


def test_tokens_are_sets_so_that_a_repeated_word_counts_once():
    assert fox_metrics("a a a b", "a b")["precision"] == 1.0


def test_bleu_of_texts_by_hand():
    """Five of six tokens: precisions 1, brevity exp(1 - 6 / 5). Three have no run of four: ~0."""
    assert fox_metrics("a b c d e", "a b c d e f")["bleu"] == pytest.approx(np.exp(-0.2))
    assert fox_metrics("a b c", "a b c")["bleu"] < 1e-50


def test_chinese_is_split_into_words_if_either_text_has_any():
    """jieba: 北京 | 天安门; split by white space, the texts would share no token."""
    found = fox_metrics("北京天安门", "北京")
    assert (found["precision"], found["recall"]) == (0.5, 1.0)
    assert fox_metrics("ab cd", "ab北京")["precision"] == pytest.approx(1 / 3)  # a blank is a token


@pytest.mark.parametrize(
    ("prediction", "truth", "agree"),
    [("", "", 1.0), ("a b", "", 0.0), ("", "a b", 0.0), (" \n", "", 1.0), ("北京", "", 0.0)],
)
def test_pages_without_tokens_agree_or_score_zero(prediction, truth, agree):
    found = fox_metrics(prediction, truth)
    assert {v for k, v in found.items() if k != "edit_distance"} == {agree}
    assert found["edit_distance"] == float(prediction != truth)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_every_metric_of_any_two_texts_is_in_0_to_1(prediction, truth):
    for fox_compat in (False, True):
        found = fox_metrics(prediction, truth, fox_compat=fox_compat)
        assert all(0 <= value <= 1 + 1e-12 for value in found.values())


def test_without_wordnet_only_meteor_is_missing(monkeypatch):
    monkeypatch.setattr(ocr, "find_wordnet", lambda: None)
    for pair in (("a b c", "a b d e"), ("", ""), ("", "a")):
        assert set(fox_metrics(*pair)) == set(FOX_METRICS) - {"meteor"}


def test_a_missing_wordnet_is_not_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(wordnet, "DEBIAN_FOLDER", tmp_path)
    assert wordnet._debian_reader() is None


def test_nothing_is_printed_and_no_file_is_left(tmp_path):
    """In a separate process, since warnings and jieba's dictionary come once per process."""
    code = (
        "from perpo_pipeline.evaluate.ocr import fox_metrics\n"
        "fox_metrics('北京 x', '上海'); fox_metrics('a b c d', 'e f g h')"
    )
    environment = {"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "always::UserWarning", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout + done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_published_character_error_rates_are_reproduced(realdata: Path):
    pages = json.loads((realdata / "ocr_cer" / "pairs.json").read_text())
    checked = [page for page in pages if page["reproduced_by_dinglehopper_0_11"]]
    found = [character_error_rate(page["ocr"], page["gt"]) for page in checked]
    assert len(checked) == 38
    np.testing.assert_allclose(found, [p["reported"]["cer"] for p in checked], atol=1e-12)


@pytest.mark.parametrize(
    ("prediction", "truth", "cer", "wer"),
    [
        ("kitten", "sitting", 3 / 7, 1.0),
        ("the cat sat", "the cat sat down", 5 / 16, 1 / 4),
        ("a  b\nc", "a b c", 2 / 5, 0.0),
        ("one two three", "one", 10 / 3, 2.0),
        ("", "", 0.0, 0.0),
        ("a b", "", 1.0, 1.0),
        ("", "a b", 1.0, 1.0),
        (" ", "", 1.0, 0.0),
    ],
    ids=[
        "kitten",
        "a word missing",
        "white space",
        "above 1",
        "both empty",
        "no truth",
        "no prediction",
        "a blank without words",
    ],
)
def test_error_rates_by_hand(prediction, truth, cer, wer):
    assert character_error_rate(prediction, truth) == pytest.approx(cer)
    assert word_error_rate(prediction, truth) == pytest.approx(wer)


def test_the_corpus_rate_weights_pages_by_their_length():
    """1 edit of 2 and 0 of 8: .1 over the corpus, .25 on average over pages."""
    counts = np.array([character_edits("ax", "ab"), character_edits("abcdefgh", "abcdefgh")])
    assert corpus_error_rates(counts.sum(axis=0, keepdims=True)) == pytest.approx([0.1])
    assert corpus_error_rates(counts).mean() == pytest.approx(0.25)


def test_empty_truths_have_the_same_corpus_and_page_rate():
    assert corpus_error_rates(np.array([[0.0, 0.0], [3.0, 0.0]])).tolist() == [0.0, 1.0]
