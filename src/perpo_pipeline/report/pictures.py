"""Examples before and after training: chosen by a hash, in fixed shares of each outcome.

Of texts, half of the examples are chosen so; the others have the largest gains and losses, and the
page says so.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from perpo_pipeline.answers.formats import shown_question
from perpo_pipeline.drawing.overlay import data_uri
from perpo_pipeline.evaluate.metrics import right
from perpo_pipeline.report.inputs import SplitInputs
from perpo_pipeline.report.paired import Floats, Outcomes
from perpo_pipeline.store.schemas import PREDICTIONS, PROMPTS
from perpo_pipeline.vlm.inputs import prompt_image
from perpo_pipeline.vlm.thumbnails import Thumbnail, thumbnails

IMPROVED, UNCHANGED, WORSENED = "improved", "unchanged", "worsened"
SHARES = {IMPROVED: 0.5, UNCHANGED: 0.25, WORSENED: 0.25}
EXTREMES = 4
"""One of this many examples of texts has the largest gain, and one the largest loss."""
SIDES_PX = (1024, 640, 400)
LARGEST_IMAGE = 400_000
"""Characters of an image on the page: the first of SIDES_PX that fits. So the size of a page is at
most this for each example and each list, and LONGEST_TEXT for each text."""
LONGEST_TEXT = 20_000
PROMPT_COLUMNS = [
    *PROMPTS.pick("prompt_id", "place", "width", "height", "prompt", role="truth"),
    *PROMPTS.role("image"),
]

Row = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """One model's answer: text, reward and box (xyxy, pixels of the original image)."""

    text: str
    reward: float
    box: list[float] | None


@dataclass(frozen=True)
class Chosen:
    """Why an example is shown: by the hash, or its place (from 1) among all gains or losses."""

    at_random: bool = False
    gain: int | None = None
    loss: int | None = None


@dataclass(frozen=True)
class Picture:
    """One example; `prompt` is its row of the prompts, `source` its image as a data URI.

    `more` are its other images, if it has several. `chosen` says how it was chosen. `others` are
    the answers of other methods, by variant.
    """

    outcome: str
    chosen: Chosen
    prompt: Row
    question: str
    source: str
    truth_text: str | None
    before: Answer
    after: Answer
    others: dict[str, Answer] = field(default_factory=dict)
    more: Sequence[Thumbnail] = ()

    @property
    def change(self) -> float:
        """The reward gained."""
        return self.after.reward - self.before.reward

    @property
    def same(self) -> bool:
        """Whether both models gave the same answer."""
        return self.before.text == self.after.text


def outcomes_of(before: Floats, after: Floats, *, is_grounding: bool) -> list[str]:
    """For each prompt: improved, unchanged or worsened.

    A box counts as changed if it becomes right or wrong (IoU 0.5), a text if its reward changes.
    """
    if is_grounding:
        before, after = right(before), right(after)
    gained, lost = after > before, after < before
    return [
        IMPROVED if up else WORSENED if down else UNCHANGED
        for up, down in zip(gained, lost, strict=True)
    ]


def choose(prompt_ids: Sequence[str], outcomes: Sequence[str], wanted: int) -> list[int]:
    """Indices of the rows to show: half improved, a quarter unchanged, a quarter worsened.

    Each outcome gives the prompts with the smallest sha256 of the prompt_id, so the choice depends
    neither on the order of the rows nor on the size of a change. If an outcome has too few prompts,
    the page shows fewer pictures.
    """
    chosen = []
    for outcome, quota in _quotas(wanted).items():
        rows = [i for i, found in enumerate(outcomes) if found == outcome]
        rows.sort(key=lambda i: hashlib.sha256(prompt_ids[i].encode()).digest())
        chosen += rows[:quota]
    return chosen


def choose_extremes(prompt_ids: Sequence[str], gains: Floats, wanted: int) -> dict[int, Chosen]:
    """The rows with the `wanted` largest gains and losses, `(n,)`, with their places from 1.

    Rows of equal gain are ordered by the sha256 of the prompt_id; a gain of 0 is neither.
    """
    hashes = [hashlib.sha256(key.encode()).digest() for key in prompt_ids]
    order = sorted(range(len(gains)), key=lambda i: (-abs(gains[i]), hashes[i]))
    up = [i for i in order if gains[i] > 0][:wanted]
    down = [i for i in order if gains[i] < 0][:wanted]
    return {
        **{i: Chosen(gain=place) for place, i in enumerate(up, 1)},
        **{i: Chosen(loss=place) for place, i in enumerate(down, 1)},
    }


def _quotas(wanted: int) -> dict[str, int]:
    rest = {outcome: int(wanted * share) for outcome, share in SHARES.items()}
    return {**rest, IMPROVED: wanted - rest[UNCHANGED] - rest[WORSENED]}


def read_pictures(
    test_set: SplitInputs,
    outcomes: Outcomes,
    variants: tuple[str, str],
    wanted: int,
    others: Sequence[str] = (),
) -> tuple[list[Picture], dict[str, int]]:
    """The examples for two variants, and the number of prompts with each outcome.

    With texts, `others` are further variants whose answers are shown, too.
    """
    ids = outcomes.prompts["prompt_id"].to_list()
    before, after = (outcomes.rewards[variant] for variant in variants)
    changes = outcomes_of(before, after, is_grounding=outcomes.is_grounding)
    counts = {outcome: changes.count(outcome) for outcome in SHARES}
    chosen = _chosen(ids, changes, after - before if outcomes.is_text else None, wanted)
    keys = {ids[i]: i for i in chosen}
    shown = [*variants, *(others if outcomes.is_text else [])]
    prompts = _rows_of(test_set.prompts.batches(PROMPT_COLUMNS), keys)
    columns = PREDICTIONS.pick("prompt_id", "completion", "reward", "box")
    answers = {
        variant: _rows_of(test_set.predictions[variant].batches(columns), keys) for variant in shown
    }
    return [
        _picture(
            prompts[key],
            (changes[i], chosen[i]),
            {variant: _answer(rows[key]) for variant, rows in answers.items()},
        )
        for key, i in keys.items()
    ], counts


def _chosen(
    ids: Sequence[str], outcomes: Sequence[str], gains: Floats | None, wanted: int
) -> dict[int, Chosen]:
    """The rows to show: all by the hash, or with `gains` those with the largest ones as well."""
    each = 0 if gains is None else wanted // EXTREMES
    extremes = {} if gains is None else choose_extremes(ids, gains, each)
    found = dict.fromkeys(choose(ids, outcomes, wanted - 2 * each), Chosen(at_random=True))
    for i, extreme in extremes.items():
        found[i] = replace(extreme, at_random=i in found)
    return found


def _rows_of(batches: Iterable[pa.Table], wanted: Collection[str]) -> dict[str, Row]:
    keys = pa.array(list(wanted), pa.string())
    return {
        row["prompt_id"]: row
        for batch in batches
        for row in batch.filter(pc.is_in(batch["prompt_id"], keys)).to_pylist()
    }


def _answer(row: Row) -> Answer:
    return Answer(shortened_text(row["completion"]), row["reward"], row["box"])


def _picture(prompt: Row, why: tuple[str, Chosen], answers: Mapping[str, Answer]) -> Picture:
    """The example; the first two of `answers` are those before and after training."""
    text = prompt["gt_text"]
    before, after, *_ = answers.values()
    return Picture(
        outcome=why[0],
        chosen=why[1],
        prompt=prompt,
        question=shortened_text(shown_question(prompt["prompt"])),
        source=embedded(prompt_image(prompt)),
        truth_text=None if text is None else shortened_text(text),
        before=before,
        after=after,
        others=dict(list(answers.items())[2:]),
        more=thumbnails(prompt),
    )


def embedded(image: Image.Image) -> str:
    """An image as a data URI of at most LARGEST_IMAGE characters, if a side of SIDES_PX does."""
    uri = ""
    for side in SIDES_PX:
        uri = data_uri(image, side)
        if len(uri) <= LARGEST_IMAGE:
            break
    return uri


def shortened_text(text: str) -> str:
    """At most LONGEST_TEXT characters; what is left out is counted."""
    over = len(text) - LONGEST_TEXT
    return text if over <= 0 else f"{text[:LONGEST_TEXT]} … ({over} more characters)"
