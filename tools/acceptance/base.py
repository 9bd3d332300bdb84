"""Answers of a base model against its published AP@50; if it is missed, the likely causes.

A cause is a diagnosis only. Another frame that would score better is named, and never chosen.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from perpo_pipeline.answers.formats import BOX_FORMATS, frame_fault
from perpo_pipeline.answers.frames import FRAMES
from perpo_pipeline.answers.settings import Reading
from perpo_pipeline.rewards.builtin import AUTO
from perpo_pipeline.rewards.scoring import TRUTH_COLUMNS, score_samples
from perpo_pipeline.store.schemas import PREDICTIONS
from tools.acceptance.published import Published

ANSWER_COLUMNS = PREDICTIONS.pick("prompt_id", "completion", "finish_reason", "resized")
RIGHT = 0.5  # the IoU from which an answer is right
MOST_CUT = 0.05  # share of answers that may end at max_new_tokens
FEWEST_READ = 0.9  # share of answers that must hold a box
MOST_EQUAL = 0.25  # share of prompts that may have one and the same answer
FEW_TOKENS = 0.1  # relative difference in image tokens that is accepted
SHUFFLES = 20
SHOWN = 3


@dataclass(frozen=True)
class Score:
    """Shares of the answers: right ones, and those with a box; the mean IoU."""

    ap50: float
    miou: float
    parse_rate: float


@dataclass(frozen=True)
class BaseResult:
    """What the answers score, the range that is accepted, and the causes if it is missed."""

    score: Score
    n: int
    low: float
    high: float
    causes: Sequence[str]

    @property
    def passed(self) -> bool:
        return self.low <= self.score.ap50 <= self.high


def check_base(
    answers: pa.Table, truth: pa.Table, reading: Reading, published: Published
) -> BaseResult:
    """Compare answers with the published figure.

    `answers` needs the ANSWER_COLUMNS, one row per prompt, and `truth` the TRUTH_COLUMNS.
    """
    low, high = published.limits(answers.num_rows)
    score = score_as(answers, truth, reading)
    found = BaseResult(score, answers.num_rows, low, high, ())
    if found.passed:
        return found
    return replace(found, causes=list(_causes(answers, truth, reading, found)))


def score_as(answers: pa.Table, truth: pa.Table, reading: Reading) -> Score:
    """The answers' score, read in this way."""
    found = _scored(answers, truth, reading)
    rewards = found["reward"].to_numpy()
    return Score(
        float((rewards >= RIGHT).mean()),
        float(rewards.mean()),
        float(np.mean(found["parse_ok"].to_numpy(zero_copy_only=False))),
    )


def _scored(answers: pa.Table, truth: pa.Table, reading: Reading) -> pa.Table:
    samples = answers.append_column("sample_id", pa.array([0] * answers.num_rows, pa.int32()))
    return score_samples(samples, truth.select(TRUTH_COLUMNS), reward={AUTO: 1.0}, reading=reading)


def token_fault(tokens: Sequence[int], published: Published) -> str | None:
    """Why images are cut into another number of tokens than expected, or None if they are not.

    `tokens` are those of images of the size `published.image`.
    """
    expected, width, height = published.image_tokens, *published.image
    wrong = [one for one in tokens if abs(one - expected) > FEW_TOKENS * expected]
    if not wrong:
        return None
    return (
        f"image tokens: an image of {width}x{height} becomes {wrong[0]:,} tokens, and {expected:,} "
        "are expected: the processor's files, or settings of the image's size, are other ones"
    )


def _causes(
    answers: pa.Table, truth: pa.Table, reading: Reading, found: BaseResult
) -> Iterator[str]:
    """The causes that the answers show, the likeliest first."""
    if found.score.ap50 > found.high:
        yield (
            "better than published: another checkpoint than the one named, or one that was trained "
            "on these images"
        )
        return
    others = list(_other_readings(answers, truth, reading, found))
    shown = [
        cause
        for cause in (_cut(answers), _misread(others, reading), _unread(answers, truth, reading))
        if cause is not None
    ]
    equal = _equal(answers)
    shown += [equal] if equal else []
    if not others and not shown and (mismatch := _mismatch(answers, truth, reading, found.score)):
        shown.append(mismatch)
    yield from shown or [
        "unknown: the answers can be read, differ, belong to their images and are not cut; compare "
        "prompt and preprocessing with the source of the figure"
    ]


def _cut(answers: pa.Table) -> str | None:
    cut = answers["finish_reason"].to_pylist().count("length")
    if cut <= MOST_CUT * answers.num_rows:
        return None
    return (
        f"truncation: {cut:,} of {answers.num_rows:,} answers end at eval.max_new_tokens: raise "
        "it, or the chat template is not the model's, so that answers do not end"
    )


def _other_readings(
    answers: pa.Table, truth: pa.Table, reading: Reading, found: BaseResult
) -> Iterator[tuple[Score, Reading]]:
    """Other box formats and frames in which the same answers would reach the range."""
    has_sizes = answers["resized"].null_count == 0
    seen: set[Score] = set()
    for box_format in (reading.box_format, *BOX_FORMATS):
        for frame in FRAMES:
            if frame_fault(box_format, frame) or (frame == "resized" and not has_sizes):
                continue
            other = replace(reading, box_format=box_format, box_frame=frame)
            score = score_as(answers, truth, other)
            if score.ap50 >= found.low and score not in seen:
                seen.add(score)
                yield score, other


def _misread(others: Sequence[tuple[Score, Reading]], reading: Reading) -> str | None:
    if not others:
        return None
    best_first = sorted(others, key=lambda one: -one[0].ap50)[:SHOWN]
    kind = "frame" if best_first[0][1].box_format == reading.box_format else "box format"
    listed = ", ".join(
        f"{score.ap50:.1%} as box_format {one.box_format}, box_frame {one.box_frame}"
        for score, one in best_first
    )
    return (
        f"wrong {kind}: the same answers, read as box_format {reading.box_format}, box_frame "
        f"{reading.box_frame}, would score {listed}. Nothing was chosen: which is right follows "
        "from the model and model.preprocess (docs/boxes.md), not from the score"
    )


def _unread(answers: pa.Table, truth: pa.Table, reading: Reading) -> str | None:
    parsed = _scored(answers, truth, reading)["parse_ok"]
    unread = answers.filter(pc.invert(parsed))["completion"].to_pylist()
    if len(unread) <= (1 - FEWEST_READ) * answers.num_rows:
        return None
    return (
        f"wrong template or prompt: {len(unread):,} of {answers.num_rows:,} answers hold no box "
        f"in the format {reading.box_format}, for instance {unread[0][:80]!r}"
    )


def _equal(answers: pa.Table) -> str | None:
    ((text, number),) = Counter(answers["completion"].to_pylist()).most_common(1)
    if number <= MOST_EQUAL * answers.num_rows:
        return None
    return (
        f"degenerate answers: {number:,} of {answers.num_rows:,} prompts have the answer "
        f"{text[:80]!r}: the image may not reach the model, or its weights are not loaded"
    )


def _mismatch(answers: pa.Table, truth: pa.Table, reading: Reading, score: Score) -> str | None:
    """Whether the answers are no better than those to other prompts."""
    rng = np.random.default_rng(0)
    by_chance = []
    for _ in range(SHUFFLES):
        order = pa.array(rng.permutation(answers.num_rows))
        shuffled = answers.take(order).drop_columns("prompt_id")
        shuffled = shuffled.append_column("prompt_id", answers["prompt_id"])
        by_chance.append(score_as(shuffled, truth, reading).miou)
    chance = float(np.mean(by_chance))
    if score.miou > chance + 4 * float(np.std(by_chance)):
        return None
    return (
        f"answers do not belong to their images: their mean IoU of {score.miou:.1%} is that of "
        f"answers to other prompts ({chance:.1%}): images or rows are in another order, or the "
        "image does not reach the model"
    )
