"""One training example: a prompt with completions and their rewards, chosen as a method needs.

SFT trains on the ground truth, DPO on the best and the worst completion, the others on all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from perpo_pipeline import advice
from perpo_pipeline.answers.boxes import Box, Size, clip_to_frame, format_boxes, get_box_format
from perpo_pipeline.answers.placement import place_frame
from perpo_pipeline.config.methods import Method
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.errors import ArtifactError, ConfigError, InputError
from perpo_pipeline.seeds import tie_break
from perpo_pipeline.store.places import name_prompt
from perpo_pipeline.vlm.chat import AnswerTurn
from perpo_pipeline.vlm.image_place import row_turns
from perpo_pipeline.vlm.inputs import faults_of_one_row

if TYPE_CHECKING:
    from perpo_pipeline.vlm.models import Vlm
    from perpo_pipeline.vlm.prompts import Asked

Row = Mapping[str, Any]


@dataclass(frozen=True)
class TrainingList:
    """A row of the prompts table with its completions to train on, and one entry per completion in
    each other sequence.

    `ref_logps` are summed log-probabilities under the reference model in nats; None if the method
    needs no reference (SFT). `prompt_tokens` is the encoded prompt's length; None if not counted.
    `negative` is the first completion behind a blank image, for a method that asks for it.
    `sampled_margin` is the margin of the sampled list where the completions are others.
    """

    prompt: Row
    completions: Sequence[Sequence[int]]
    rewards: Sequence[float]
    counts: Sequence[int]
    ref_logps: Sequence[float] | None = None
    prompt_tokens: int | None = None
    negative: "TrainingList | None" = None
    sampled_margin: float | None = None

    @property
    def margin(self) -> float:
        """The largest reward of the sampled list minus its smallest; 0 without completions."""
        if self.sampled_margin is not None:
            return self.sampled_margin
        return max(self.rewards, default=0.0) - min(self.rewards, default=0.0)


def ranked_lists(preferences: Sequence[Row], prompts: Mapping[str, Row]) -> list[TrainingList]:
    """Whole lists in the order of the preferences; raises ArtifactError for a missing prompt."""
    return [
        TrainingList(
            prompt=_find(prompts, row["prompt_id"], "prompts"),
            completions=row["completion_token_ids"],
            rewards=row["rewards"],
            counts=row["counts"],
        )
        for row in preferences
    ]


def with_reference(
    lists: Sequence[TrainingList], reference: Mapping[str, Sequence[float]]
) -> list[TrainingList]:
    """Add the reference log-probabilities to the lists; raises ArtifactError if any are missing."""
    return [
        replace(entry, ref_logps=_find(reference, entry.prompt["prompt_id"], "reference"))
        for entry in lists
    ]


def choose_completions(lists: Sequence[TrainingList], method: Method) -> list[TrainingList]:
    """What the method needs of each list: a pair, or everything."""
    if method.trains_on == "pair":
        return [best_against_worst(entry) for entry in lists]
    return list(lists)


def with_blank_images_of(
    lists: Sequence[TrainingList],
    method: Method,
    vlm: "Vlm",
    reference: Mapping[str, Sequence[float]] | None = None,
) -> list[TrainingList]:
    """Pairs with their best completion behind a blank image of the same size, if the method asks
    for it.

    `reference` has the log-probabilities of these, by prompt_id; raises ArtifactError if any are
    missing.
    """
    if not method.blank_image:
        return list(lists)
    from perpo_pipeline.vlm.blank import mean_rgb, with_blank_images

    prompts = with_blank_images([entry.prompt for entry in lists], mean_rgb(vlm))
    blank = [
        TrainingList(prompt, entry.completions[:1], [1.0], [1], prompt_tokens=entry.prompt_tokens)
        for entry, prompt in zip(lists, prompts, strict=True)
    ]
    if reference is not None:
        blank = with_reference(blank, reference)
    return [replace(entry, negative=one) for entry, one in zip(lists, blank, strict=True)]


def best_against_worst(entry: TrainingList) -> TrainingList:
    """The pair of DPO: one best and one worst completion (largest reward gap).

    Among equals it takes the one whose token ids have the smallest hash, so the choice does not
    depend on the order of the list.
    """
    best, worst = max(entry.rewards), min(entry.rewards)
    chosen = [_pick(entry, best), _pick(entry, worst)]
    return TrainingList(
        prompt=entry.prompt,
        completions=[entry.completions[i] for i in chosen],
        rewards=[entry.rewards[i] for i in chosen],
        counts=[1, 1],
        ref_logps=None if entry.ref_logps is None else [entry.ref_logps[i] for i in chosen],
        prompt_tokens=entry.prompt_tokens,
    )


def ground_truth_list(
    entry: TrainingList, vlm: "Vlm", model: ModelConfig, turn: AnswerTurn
) -> TrainingList:
    """The target of SFT: the prompt's ground truth, in the model's own answer format.

    `turn` is what the model's chat template puts around an answer.
    """
    needs_size = model.box_frame == "resized" and entry.prompt["task"] == "grounding"
    resized = _resized(entry.prompt, vlm) if needs_size else None
    answer = ground_truth_text(entry.prompt, model, resized)
    with faults_of_one_row(entry.prompt):
        ids = target_token_ids(vlm, row_turns(entry.prompt), answer, turn)
    return TrainingList(entry.prompt, [ids], [1.0], [1], sampled_margin=entry.margin)


def ground_truth_text(prompt: Row, model: ModelConfig, resized: Size | None = None) -> str:
    """The ground truth as an answer: boxes in the model's text format, or the text itself.

    Without a target (`gt_boxes` is empty) it is the format's `no_target`, for a true point alone
    the point in the format's unit.
    `resized` is the image size that the frame `resized` needs. Boxes are clipped to the frame;
    raises InputError if nothing of a box is left.
    """
    if _has_only_a_point(prompt):
        return _written_point(prompt, model, resized)
    if prompt["task"] == "grounding":
        size = (prompt["width"], prompt["height"])
        frame: dict[str, Any] = {"frame": model.box_frame, "image_size": size, "resized": resized}
        boxes = [_visible_box(box, prompt, frame) for box in _true_boxes(prompt)]
        return format_boxes(boxes, model.box_format, **frame)
    return str(prompt["gt_text"])


def _has_only_a_point(prompt: Row) -> bool:
    others = (prompt["gt_box"], prompt["gt_boxes"], prompt.get("gt_polygon"))
    return prompt.get("gt_point") is not None and others == (None, None, None)


def _written_point(prompt: Row, model: ModelConfig, resized: Size | None) -> str:
    """The true point in the model's text format; raises InputError if it is outside the frame."""
    x, y = prompt["gt_point"]
    placement = place_frame(model.box_frame, (prompt["width"], prompt["height"]), resized)
    written = get_box_format(model.box_format).write_point((x, y), placement)
    if written is None:
        raise InputError(
            f"the point of {name_prompt(prompt)} lies outside the frame "
            f"'{model.box_frame}', so no answer can give it",
            fix="use model.preprocess: pad with box_frame full, or remove such prompts",
        )
    return written


def _true_boxes(prompt: Row) -> list[Sequence[float]]:
    if prompt["gt_box"] is None and prompt["gt_boxes"] is None:
        raise InputError(
            f"{name_prompt(prompt)} has no true box to train on, only a polygon",
            fix="remove sft from train.methods, or prepare the data with gt_box",
        )
    return prompt["gt_boxes"] if prompt["gt_box"] is None else [prompt["gt_box"]]


def _visible_box(true: Sequence[float], prompt: Row, frame: Mapping[str, Any]) -> Box:
    """The part of a true box inside the frame; raises InputError if there is none."""
    x1, y1, x2, y2 = true
    box = clip_to_frame((x1, y1, x2, y2), **frame)
    if box is None:
        raise InputError(
            f"the box of {name_prompt(prompt)} lies outside the frame "
            f"'{frame['frame']}', so no answer can give it",
            fix="use model.preprocess: pad with box_frame full, or remove such prompts",
        )
    return box


def _resized(prompt: Row, vlm: "Vlm") -> Size:
    """The size of the resized image, which is never padded: `ModelConfig` refuses that."""
    from perpo_pipeline.vlm.prompts import resized_size

    with faults_of_one_row(prompt):
        size = resized_size(vlm, (prompt["width"], prompt["height"]))
    if size is None:
        raise ConfigError(
            f"box_frame 'resized' needs images that are resized as a whole, but this "
            f"'{vlm.family.name}' model sees the image of {name_prompt(prompt)} differently",
            fix="choose another model.box_frame",
        )
    return size


def target_token_ids(vlm: "Vlm", prompt: "Asked", answer: str, turn: AnswerTurn) -> list[int]:
    """Token ids of an answer as the model would write it (`answer_ids`), end token included."""
    from perpo_pipeline.vlm.prompts import answer_ids

    return [*answer_ids(vlm, prompt, answer, turn.start), turn.end_id]


def _pick(entry: TrainingList, reward: float) -> int:
    ties = [i for i, r in enumerate(entry.rewards) if r == reward]
    return min(ties, key=lambda i: tie_break(entry.completions[i]))


def _find(table: Mapping[str, Any], prompt_id: str, name: str) -> Any:
    try:
        return table[prompt_id]
    except KeyError:
        raise ArtifactError(
            f"prompt {prompt_id} is in the preferences but not in the {name}",
            fix=f"make all from the samples on anew, first: {advice.command('sample')}",
        ) from None
