"""The built-in rewards: one table with what each of them measures, and against which truth.

A new reward is one entry of `REWARDS`: settings, scoring and fingerprints find it there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl

from perpo_pipeline import advice
from perpo_pipeline.answers import reading
from perpo_pipeline.answers.denials import read_denials
from perpo_pipeline.answers.formats import get_box_format
from perpo_pipeline.answers.pipeline import answer_texts
from perpo_pipeline.answers.placement import place_frames
from perpo_pipeline.answers.settings import Reading
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.rewards import grounding, number, polygon, sets, text
from perpo_pipeline.rewards.normalise import normalise_texts

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """Rows of completions joined with the truth of their prompts, and how completions are read.

    Rewards read the `texts` of the answers, or the boxes, points, polygons and numbers in them.
    `normalise` names the normal forms of texts that are compared: `normalise.NORMAL_FORMS`.
    """

    rows: pl.DataFrame
    reading: Reading
    normalise: Sequence[str] = ()

    @cached_property
    def texts(self) -> pl.Series:
        """The text of each answer; null where a completion holds none, such as a cut-off thought.

        The whole completions, with thoughts and tags, are `rows["completion"]`.
        """
        return answer_texts(self.rows["completion"], self.reading)

    @property
    def true_texts(self) -> list[str]:
        return cast(list[str], self.rows["gt_text"].to_list())

    def boxes(self) -> Floats:
        """The box of each answer, `(n, 4)` xyxy px, NaN for none: `reading.read_boxes`."""
        return reading.read_boxes(self.texts, **self._geometry(), which=self.reading.which)

    def box_lists(self) -> list[Floats]:
        """All boxes of each answer, n arrays `(k, 4)`: `reading.read_box_lists`."""
        return reading.read_box_lists(self.texts, **self._geometry())

    def points(self) -> Floats:
        """The point of each answer, `(n, 2)` px, NaN for none: `reading.read_points`."""
        return reading.read_points(self.texts, **self._geometry(), which=self.reading.which)

    def polygons(self) -> list[Floats | None]:
        """The polygon of each answer, `(k, 2)` px, None for none: `reading.read_polygons`."""
        return reading.read_polygons(self.texts, **self._geometry(), which=self.reading.which)

    def numbers(self) -> Floats:
        """The number in each answer, `(n,)`, NaN for none: `reading.read_numbers`."""
        return reading.read_numbers(self.texts, self.reading.which)

    def reach(self, points_px: Floats) -> Floats:
        """How far the points that were read, `(n, 2k)`, go: `Placement.reach`, `(n, 2)`."""
        found = self._geometry()
        sizes, resized = found["sizes"], found["resized"]
        placement = place_frames(found["frame"], sizes, resized, len(points_px))
        return placement.reach(points_px, get_box_format(found["box_format"]).scale)

    def denials(self) -> npt.NDArray[np.bool_]:
        """Whether each answer says that nothing is there, `(n,)`: `denials.read_denials`."""
        return read_denials(self.texts.to_list(), self.reading.box_format)

    def true_boxes(self) -> Floats:
        """The true box of each row, `(n, 4)` xyxy px."""
        flat = self.rows["gt_box"].list.explode().to_numpy()
        return np.asarray(flat, dtype=np.float64).reshape(-1, 4)

    def true_box_lists(self) -> list[Floats]:
        """The true boxes of each row, n arrays `(k, 4)`; k is 0 where nothing is there."""
        lists = self.rows["gt_boxes"].to_list()
        return [np.asarray(boxes, dtype=np.float64).reshape(-1, 4) for boxes in lists]

    def where(self, mask: npt.NDArray[np.bool_]) -> "Answers":
        """The rows where the mask holds."""
        return replace(self, rows=self.rows.filter(pl.Series(mask)))

    def _geometry(self) -> dict[str, Any]:
        """The arguments of the readers in answers/reading.py."""
        frame = self.reading.box_frame
        return {
            "box_format": self.reading.box_format,
            "frame": frame,
            "sizes": self.rows.select("width", "height").to_numpy(),
            "resized": _resized_sizes(self.rows) if frame == "resized" else None,
        }


@dataclass(frozen=True)
class Measured:
    """Rewards `(n,)` in [0, 1], whether each answer could be read, and its box or NaN `(n, 4)`.

    `reach` says how far the region in each answer goes, `(n, 2)` by `Answers.reach`, NaN for none;
    None for a reward that reads no region.
    """

    rewards: Floats
    parse_ok: npt.NDArray[np.bool_]
    boxes: Floats
    reach: Floats | None = None


@dataclass(frozen=True)
class Reward:
    """A built-in reward: the column of truth that it needs, and the function that measures.

    `is_iou` marks the IoU of one region, which best-of-n curves and the report know how to show.
    `compares_texts` marks those before which texts are normalised.
    """

    truth: str
    measure: Callable[[Answers], Measured]
    is_iou: bool = False
    compares_texts: bool = False

    @property
    def reads_geometry(self) -> bool:
        """Whether the box format and frame decide what an answer says."""
        return self.truth != "gt_text"


def measured_without_boxes(
    rewards: Floats, parse_ok: npt.ArrayLike, reach: Floats | None = None
) -> Measured:
    """What a reward that reads no box returns."""
    no_boxes = np.full((len(rewards), 4), np.nan)
    return Measured(rewards, np.asarray(parse_ok, dtype=bool), no_boxes, reach)


def around(points: Sequence[npt.NDArray[Any] | None]) -> Floats:
    """The box `(n, 4)` around the points or boxes of each answer, `(k, 2)` or `(k, 4)`.

    NaN for an answer without any.
    """
    found = np.full((len(points), 4), np.nan)
    for row, one in enumerate(points):
        flat = np.reshape([] if one is None else one, (-1, 2))
        flat = flat[~np.isnan(flat).any(axis=1)]
        if len(flat):
            found[row] = *flat.min(axis=0), *flat.max(axis=0)
    return found


def _box_reward(measure: Callable[[Floats, Floats], Floats], *, is_iou: bool = False) -> Reward:
    def measure_rows(answers: Answers) -> Measured:
        boxes = answers.boxes()
        rewards = measure(boxes, answers.true_boxes())
        return Measured(rewards, ~np.isnan(boxes[:, 0]), boxes, answers.reach(boxes))

    return Reward("gt_box", measure_rows, is_iou)


def _steps(thresholds: tuple[float, float]) -> Callable[[Floats, Floats], Floats]:
    return lambda found, true: grounding.stepped_ious(grounding.iou_xyxy(found, true), thresholds)


def _point_reward(measure: Callable[[Floats, Floats], Floats]) -> Reward:
    def measure_rows(answers: Answers) -> Measured:
        points = answers.points()
        rewards = measure(points, answers.true_boxes())
        return measured_without_boxes(rewards, ~np.isnan(points[:, 0]), answers.reach(points))

    return Reward("gt_box", measure_rows)


def _point_closeness(answers: Answers) -> Measured:
    points = answers.points()
    true = np.reshape(answers.rows["gt_point"].list.explode().to_numpy(), (-1, 2))
    sizes = answers.rows.select("width", "height").to_numpy()
    rewards = grounding.point_closeness(points, true, sizes)
    return measured_without_boxes(rewards, ~np.isnan(points[:, 0]), answers.reach(points))


def _polygon_iou(answers: Answers) -> Measured:
    found = answers.polygons()
    truth = [np.reshape(flat, (-1, 2)) for flat in answers.rows["gt_polygon"].to_list()]
    return measured_without_boxes(
        polygon.polygon_ious(found, truth),
        [p is not None for p in found],
        answers.reach(around(found)),
    )


def _set_reward(measure: Callable[[sets.Boxes, sets.Boxes], Floats]) -> Reward:
    """A reward for several boxes; where nothing is there, 1 for an answer that says so, else 0."""

    def measure_rows(answers: Answers) -> Measured:
        found, true = answers.box_lists(), answers.true_box_lists()
        has_boxes = np.array([len(boxes) > 0 for boxes in found], dtype=bool)
        has_target = np.array([len(boxes) > 0 for boxes in true], dtype=bool)
        denies = np.zeros(len(found), dtype=bool)
        denies[~has_boxes] = answers.where(~has_boxes).denials()
        rewards = np.where(has_target, measure(found, true), denies.astype(np.float64))
        is_read = [bool((~np.isnan(boxes)).any()) for boxes in found]
        is_parsed = denies | np.array(is_read, dtype=bool)
        return measured_without_boxes(rewards, is_parsed, answers.reach(around(found)))

    return Reward("gt_boxes", measure_rows)


def _text_reward(measure: Callable[[Sequence[str], Sequence[str]], Floats]) -> Reward:
    def measure_rows(answers: Answers) -> Measured:
        is_answer = answers.texts.is_not_null().to_numpy()
        given, true = (
            normalise_texts(texts, answers.normalise)
            for texts in (answers.texts.fill_null("").to_list(), answers.true_texts)
        )
        return measured_without_boxes(np.where(is_answer, measure(given, true), 0.0), is_answer)

    return Reward("gt_text", measure_rows, compares_texts=True)


def _number_reward(measure: Callable[[Floats, Floats], Floats]) -> Reward:
    def measure_rows(answers: Answers) -> Measured:
        truth = reading.read_numbers(answers.true_texts)
        if np.isnan(truth).any():
            row = int(np.flatnonzero(np.isnan(truth))[0])
            raise ArtifactError(
                f"the truth {answers.true_texts[row]!r} of prompt "
                f"{answers.rows['prompt_id'][row]} is no number",
                fix="choose a reward for texts, or prepare the data with numbers as gt_text",
            )
        found = answers.numbers()
        return measured_without_boxes(measure(found, truth), ~np.isnan(found))

    return Reward("gt_text", measure_rows)


REWARDS: dict[str, Reward] = {
    "iou": _box_reward(grounding.iou_xyxy, is_iou=True),
    "giou": _box_reward(grounding.giou_xyxy),
    "iou_steps": _box_reward(_steps(grounding.STEPS)),
    "iou_steps_strict": _box_reward(_steps(grounding.STRICT_STEPS)),
    "point_in_box": _point_reward(grounding.points_in_boxes),
    "point_gaussian": _point_reward(grounding.point_gaussians),
    "point_closeness": Reward("gt_point", _point_closeness),
    "polygon_iou": Reward("gt_polygon", _polygon_iou, is_iou=True),
    "set_iou": _set_reward(sets.set_ious),
    "detection_f1": _set_reward(sets.detection_f1s),
    "detection_f1_mean": _set_reward(sets.mean_detection_f1s),
    "box_count": _set_reward(sets.box_counts),
    "edit_similarity": _text_reward(text.edit_similarities),
    "character_accuracy": _text_reward(text.character_accuracies),
    "word_accuracy": _text_reward(text.word_accuracies),
    "token_f1": _text_reward(text.token_f1s),
    "exact_match": _text_reward(text.exact_matches),
    "count_match": _number_reward(number.count_matches),
    "numeric_closeness": _number_reward(number.numeric_closeness),
}
AUTO = "auto"
"""The reward that measures each row by its task and truth: `REWARDS_OF_TASK`."""

# `auto` takes the first of a task's rewards whose truth the row has.
REWARDS_OF_TASK = {
    "grounding": ("iou", "polygon_iou", "set_iou", "point_closeness"),
    "ocr": ("edit_similarity",),
    "vqa": ("edit_similarity",),
}


def _resized_sizes(rows: pl.DataFrame) -> npt.NDArray[np.int32]:
    """The size of the resized image of each answer, `(n, 2)`."""
    missing = rows.filter(pl.col("resized").is_null())
    if missing.height:
        raise ArtifactError(
            f"box_frame 'resized' needs the size of the resized image, which {missing.height} "
            f"answers lack, the first of prompt {missing['prompt_id'][0]}",
            fix=f"sample again: {advice.command('sample')}; for a model that cuts images into "
            "tiles, which has no such size, choose another model.box_frame",
        )
    flat = rows["resized"].list.explode().to_numpy()
    return np.asarray(flat, dtype=np.int32).reshape(-1, 2)
