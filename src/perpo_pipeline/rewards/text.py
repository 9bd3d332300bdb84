"""The reward of a transcription: how few edits turn it into the true text."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cpdist


def edit_similarity(prediction: str, ground_truth: str) -> float:
    """1 - Levenshtein distance / length of the longer text, in [0, 1]; 1.0 for two empty texts.

    Insertions, deletions and substitutions of code points cost 1 each. Nothing is normalised:
    case, white space and Unicode composition count, as in Fox (arXiv:2405.14295).
    Source: the OCR reward of PerPO, arXiv:2502.04371.
    """
    longest = max(len(prediction), len(ground_truth))
    if not longest:
        return 1.0
    return 1.0 - Levenshtein.distance(prediction, ground_truth) / longest


def edit_similarities(
    predictions: Sequence[str], ground_truths: Sequence[str], *, num_workers: int = 1
) -> npt.NDArray[np.float64]:
    """`edit_similarity` of each pair, `(n,)` float64, on `num_workers` threads (-1: all cores).

    The number of workers does not change the result. Raises ValueError if the lengths differ.
    """
    if len(predictions) != len(ground_truths):
        raise ValueError(
            f"there are {len(predictions)} predictions for {len(ground_truths)} ground truths"
        )
    if not predictions:
        return np.empty(0, dtype=np.float64)
    distances = cpdist(
        predictions, ground_truths, scorer=Levenshtein.distance, dtype=np.int64, workers=num_workers
    )
    longest = np.array(
        [max(map(len, pair)) for pair in zip(predictions, ground_truths, strict=True)]
    )
    return np.asarray(1.0 - distances / np.maximum(longest, 1), dtype=np.float64)
