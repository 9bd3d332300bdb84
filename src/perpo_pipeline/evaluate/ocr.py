"""Metrics of page OCR: the six of the Fox benchmark, and character and word error rates.

Texts are not normalised: case, white space and Unicode composition count. Fox (arXiv:2405.14295)
averages its metrics over pages; an error rate is all edits over the length of all true texts.
"""

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import Levenshtein

from perpo_pipeline.evaluate.fox_words import Stems, Synonyms, split_words
from perpo_pipeline.evaluate.wordnet import find_wordnet
from perpo_pipeline.rewards.text import edit_similarity

FOX_METRICS = ("edit_distance", "f1", "precision", "recall", "bleu", "meteor")


def fox_metrics(
    prediction: str, ground_truth: str, *, fox_compat: bool = False
) -> dict[str, float]:
    """The FOX_METRICS of one page, each in [0, 1]; without `meteor` if WordNet is missing.

    Tokens are jieba's words if either text has a Chinese character, else words separated by white
    space. Precision, recall and F1 compare the *sets* of tokens; BLEU is nltk's with up to four
    tokens, without smoothing; METEOR is nltk's; the edit distance is divided by the length of the
    longer text. Two texts without tokens agree (1 each); if only one has no tokens, all are 0.
    `fox_compat` passes the texts in the order of Fox's own script, truth first, which gives its
    published numbers: precision and recall change places, BLEU and METEOR differ a little.
    """
    if fox_compat:
        prediction, ground_truth = ground_truth, prediction
    hypothesis, reference = split_words(prediction, ground_truth)
    metrics = {"edit_distance": 1.0 - edit_similarity(prediction, ground_truth)}
    if not hypothesis or not reference:
        agree = float(not hypothesis and not reference)
        found = {name: agree for name in FOX_METRICS[1:]}
    else:
        found = _set_metrics(set(hypothesis), set(reference))
        found["bleu"] = _bleu(hypothesis, reference)
        found["meteor"] = _meteor(hypothesis, reference)
    if find_wordnet() is None:
        del found["meteor"]
    return metrics | found


def character_error_rate(prediction: str, ground_truth: str) -> float:
    """Edits of code points that turn the prediction into the truth, over the truth's length.

    It may exceed 1. For an empty truth it is 0 if the prediction is empty, else 1.
    """
    return error_rate(*character_edits(prediction, ground_truth))


def word_error_rate(prediction: str, ground_truth: str) -> float:
    """As `character_error_rate`, for words separated by white space."""
    return error_rate(*word_edits(prediction, ground_truth))


def character_edits(prediction: str, ground_truth: str) -> tuple[int, int]:
    """(edits, length of the truth) in code points; summed over pages they give the corpus rate."""
    return Levenshtein.distance(prediction, ground_truth), len(ground_truth)


def word_edits(prediction: str, ground_truth: str) -> tuple[int, int]:
    """(edits, length of the truth) in words separated by white space."""
    words, true_words = prediction.split(), ground_truth.split()
    return Levenshtein.distance(words, true_words), len(true_words)


def error_rate(edits: float, length: float) -> float:
    """Edits over length; for an empty truth 0 without edits, else 1."""
    return edits / length if length else float(edits > 0)


def corpus_error_rates(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """`error_rate` of each row (edits, length), `(m, 2)` -> `(m,)`; of sums: the micro average."""
    edits, lengths = sums.T
    return np.where(lengths > 0, edits / np.maximum(lengths, 1), (edits > 0).astype(np.float64))


def _set_metrics(predicted: set[str], true: set[str]) -> dict[str, float]:
    shared = len(predicted & true)
    precision, recall = shared / len(predicted), shared / len(true)
    f1 = 2 * shared / (len(predicted) + len(true))
    return {"f1": f1, "precision": precision, "recall": recall}


def _bleu(hypothesis: Sequence[str], reference: Sequence[str]) -> float:
    from nltk.translate.bleu_score import sentence_bleu

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nltk warns if the texts share no four tokens in a row
        return float(sentence_bleu([reference], hypothesis))


def _meteor(hypothesis: Sequence[str], reference: Sequence[str]) -> float:
    from nltk.translate.meteor_score import single_meteor_score

    wordnet = find_wordnet()
    if wordnet is None:
        return float("nan")
    stems, synonyms = _looked_up_once(wordnet)
    return float(single_meteor_score(reference, hypothesis, stemmer=stems, wordnet=synonyms))


@functools.cache
def _looked_up_once(wordnet: Any) -> tuple[Stems, Synonyms]:
    return Stems(), Synonyms(wordnet)
