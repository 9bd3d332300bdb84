"""The rewards of a transcription or a short answer: how few edits turn it into the true text.

Texts are compared code point by code point, lone surrogates included, and all functions take Python
strings. `num_workers` -1 uses all cores; the number of workers does not change a result.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cpdist

Floats = npt.NDArray[np.float64]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def edit_similarity(prediction: str, ground_truth: str) -> float:
    """1 - Levenshtein distance / length of the longer text, in [0, 1]; 1.0 for two empty texts.

    Insertions, deletions and substitutions of code points cost 1 each. Nothing is normalised:
    case, white space and Unicode composition count, as in Fox (arXiv:2405.14295).
    Source: the OCR reward of PerPO, arXiv:2502.04371.
    """
    return float(Levenshtein.normalized_similarity(prediction, ground_truth))


def edit_similarities(
    predictions: Sequence[str], ground_truths: Sequence[str], *, num_workers: int = 1
) -> Floats:
    """`edit_similarity` of each pair, `(n,)` float64, on `num_workers` threads.

    Raises ValueError if the numbers of texts differ.
    """
    _check_lengths(predictions, ground_truths)
    similarities = cpdist(
        predictions,
        ground_truths,
        scorer=Levenshtein.normalized_similarity,
        dtype=np.float64,
        workers=num_workers,
    )
    return np.asarray(similarities)


def character_accuracies(
    predictions: Sequence[str], ground_truths: Sequence[str], *, num_workers: int = 1
) -> Floats:
    """1 - min(1, character error rate) of each pair, `(n,)` float64 in [0, 1].

    The error rate is the Levenshtein distance / length of the true text, in code points, with
    nothing normalised. Against an empty truth only an empty prediction counts as right (1, else 0).
    Raises ValueError if the numbers of texts differ. Source: CER, as in OCR evaluation.
    """
    _check_lengths(predictions, ground_truths)
    return _accuracies(predictions, ground_truths, num_workers)


def word_accuracies(
    predictions: Sequence[str], ground_truths: Sequence[str], *, num_workers: int = 1
) -> Floats:
    """1 - min(1, word error rate) of each pair, `(n,)` float64 in [0, 1].

    As `character_accuracies`, with the words that `str.split` gives instead of characters.
    """
    _check_lengths(predictions, ground_truths)
    words, truths = ([t.split() for t in texts] for texts in (predictions, ground_truths))
    return _accuracies(words, truths, num_workers)


def token_f1s(predictions: Sequence[str], ground_truths: Sequence[str]) -> Floats:
    """F1 of the bags of normalised words of each pair, `(n,)` float64 in [0, 1].

    Normalised words are lower case, without ASCII punctuation and the articles a, an, the. Where
    that leaves nothing of the truth ("A" of multiple choice, "..."), both texts keep the articles,
    and if need be the punctuation, too. Two texts without words give 1, as in SQuAD 2.0; one text
    without words gives 0. Raises ValueError if the numbers of texts differ.
    Source: SQuAD v1.1, arXiv:1606.05250, which takes every answer without words for the truth "A".
    """
    _check_lengths(predictions, ground_truths)
    return _each(_token_f1, predictions, ground_truths)


def exact_matches(predictions: Sequence[str], ground_truths: Sequence[str]) -> Floats:
    """1 where the words of a pair are equal after the normalisation of `token_f1s`, else 0; `(n,)`.

    Two texts without words are the same. Raises ValueError if the numbers of texts differ.
    Source: SQuAD v1.1, arXiv:1606.05250.
    """
    _check_lengths(predictions, ground_truths)
    return _each(_exact_match, predictions, ground_truths)


def _check_lengths(predictions: Sequence[str], ground_truths: Sequence[str]) -> None:
    if len(predictions) != len(ground_truths):
        raise ValueError(
            f"there are {len(predictions)} predictions for {len(ground_truths)} ground truths"
        )


def _accuracies(
    predictions: Sequence[Sequence[str]], truths: Sequence[Sequence[str]], num_workers: int
) -> Floats:
    distances = cpdist(
        predictions, truths, scorer=Levenshtein.distance, dtype=np.int64, workers=num_workers
    )
    # Against nothing the distance is the prediction's length: 0 edits, or at least 1 of 1.
    lengths = np.maximum(np.fromiter(map(len, truths), np.int64, len(truths)), 1)
    return np.asarray(1.0 - np.minimum(distances / lengths, 1.0))


def _without_punctuation(text: str) -> str:
    return text.lower().translate(_NO_PUNCTUATION)


def _without_articles(text: str) -> str:
    return _ARTICLES.sub(" ", _without_punctuation(text))


def _normal_words(prediction: str, ground_truth: str) -> tuple[list[str], list[str]]:
    """The words of both, in the first of three forms in which the truth has any."""
    for form in (_without_articles, _without_punctuation, str.lower):
        if truth := form(ground_truth).split():
            return form(prediction).split(), truth
    return _without_articles(prediction).split(), []


def _exact_match(prediction: str, ground_truth: str) -> float:
    words, truth = _normal_words(prediction, ground_truth)
    return float(words == truth)


def _token_f1(prediction: str, ground_truth: str) -> float:
    words, truth = _normal_words(prediction, ground_truth)
    if not words or not truth:
        return float(words == truth)
    shared = (Counter(words) & Counter(truth)).total()
    return 2 * shared / (len(words) + len(truth))


def _each(
    measure: Callable[[str, str], float], predictions: Sequence[str], truths: Sequence[str]
) -> Floats:
    pairs = zip(predictions, truths, strict=True)
    return np.fromiter((measure(a, b) for a, b in pairs), np.float64, len(predictions))
