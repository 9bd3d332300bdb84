"""All that a page shows of one prompt: its picture, its ranked answers or each model's prediction.

The texts are as the artifacts have them: the templates escape them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from markupsafe import Markup

from perpo_pipeline.answers.formats import shown_question
from perpo_pipeline.answers.truth import truth_in_words
from perpo_pipeline.browse.answers import (
    Prediction,
    Sample,
    read_predictions,
    read_prompt,
    read_samples,
)
from perpo_pipeline.browse.images import FACTS, Lost
from perpo_pipeline.browse.versions import Artifacts, TestSet
from perpo_pipeline.config.evaluations import BASE
from perpo_pipeline.drawing import marks
from perpo_pipeline.drawing.overlay import overlay
from perpo_pipeline.report.methods import BASE_COLOUR, MORE_COLOURS, reported_methods
from perpo_pipeline.report.page.colours import reward_colour
from perpo_pipeline.report.page.texts import text_beside_truth
from perpo_pipeline.store.artifacts import Version

WIDEST_PX, HIGHEST_PX = 620, 620
"""A picture on a page; a smaller image is enlarged to it."""
SMALL_IMAGE_PX = 320
"""An image of no longer side is enlarged as squares."""

Json = dict[str, Any]
Row = Mapping[str, Any]


class Details:
    """Reads the details of prompts; `source` gives the address of an image for a page.

    `source` takes a prompts artifact, the prompt's index row and which of its images it is; it may
    say why there is none.
    """

    def __init__(
        self, artifacts: Artifacts, source: Callable[[Version, Row, int], str | Lost]
    ) -> None:
        self.artifacts, self.source = artifacts, source
        self.any_space = artifacts.ignores_space()
        self.prompts = artifacts.prompts()
        self.models = model_styles(artifacts)

    def of_list(self, row: Row) -> Json:
        """A sampled prompt, or an earlier list: its answers ranked by reward."""
        assert self.artifacts.sampled is not None
        samples = read_samples(self.artifacts.sampled, row)
        prompt = read_prompt(self.prompts[row["prompts"]], row["prompt_at"])
        rewards = [one.reward for one in samples if one.reward is not None]
        colours = [_colour(one, rewards) for one in samples]
        boxes = [
            (rank, marks.box(one.box, marks.Style(colour, line_px=2.0)))
            for rank, (one, colour) in enumerate(zip(samples, colours, strict=True), 1)
            if one.box is not None
        ]
        answers = [
            self._sample(rank, one, colour, prompt)
            for rank, (one, colour) in enumerate(zip(samples, colours, strict=True), 1)
        ]
        return {
            **self._shared(row, prompt, boxes[::-1]),
            "kind": "list",
            "answers": answers,
            "size": sum(one.count for one in samples),
            "is_scored": bool(rewards),
            "lowest": min(rewards, default=None),
            "highest": max(rewards, default=None),
            "repeated": any(one.count > 1 for one in samples),
            "has_sampler": any(one.sampler_logprob is not None for one in samples),
            "has_reference": any(one.ref_logp is not None for one in samples),
            "is_earlier": row["samples_at"] is None,
            "is_kept": row.get("list_at") is not None,
            "reason": row.get("reason"),
            "margin": row.get("margin"),
        }

    def of_predictions(self, test_set: TestSet, row: Row) -> Json:
        """A test prompt: each model's answer, and what it changes against the base.

        `guesses` are the answers to wrong images.
        """
        every = read_predictions(test_set, row)
        predictions = [one for one in every if one.saw_image]
        prompt = read_prompt(test_set.prompts, row["prompt_at"])
        base = next((one for one in predictions if one.model == BASE), None)
        boxes = [
            (rank, marks.box(one.box, self.models[one.model][2]))
            for rank, one in enumerate(predictions, 1)
            if one.box is not None
        ]
        base_rank = predictions.index(base) + 1 if base is not None else None
        boxes.sort(key=lambda item: item[0] == base_rank)  # its dashes on top, as in the report
        return {
            **self._shared(row, prompt, boxes, wide_truth=True),
            "kind": "predictions",
            "answers": [
                self._prediction(rank, one, base, prompt) for rank, one in enumerate(predictions, 1)
            ],
            "guesses": [
                self._prediction(0, one, None, prompt) for one in every if not one.saw_image
            ],
        }

    def _shared(
        self,
        row: Row,
        prompt: Row,
        boxes: Sequence[tuple[int, marks.Mark]],
        *,
        wide_truth: bool = False,
    ) -> Json:
        size = (prompt["width"], prompt["height"])
        width = replace(marks.TRUTH, line_px=5.0) if wide_truth else marks.TRUTH
        truth = [replace(mark, style=width) for mark in marks.truth_marks(prompt)]

        def drawn(every: Sequence[marks.Mark]) -> Markup:
            return Markup(overlay(every, *size, labels=False, styled=False))

        version = self.prompts[row["prompts"]]
        return {
            "prompt_id": prompt["prompt_id"],
            "question": shown_question(prompt["prompt"]),
            "asked": prompt["prompt"],
            "history": prompt.get("history") or [],
            "facts": _facts(prompt),
            "extra": _extra(prompt["extra"]),
            "image": {
                **_source(self.source(version, row, 0)),
                "size": size,
                "shown": _shown_size(*size),
                "is_small": max(size) <= SMALL_IMAGE_PX,
                "alt": _alt(prompt, truth, len(boxes)),
            },
            "more": _more(prompt, lambda n: self.source(version, row, n)),
            "overlay": drawn([mark for _, mark in boxes]),
            "truth_overlay": drawn(truth),
            "alone": [(rank, drawn([mark])) for rank, mark in boxes],
            "has_truth_marks": bool(truth),
            "truth": truth_in_words(prompt),
            "truth_text": prompt["gt_text"],
        }

    def _sample(self, rank: int, one: Sample, colour: str, prompt: Row) -> Json:
        return {
            "rank": rank,
            "has_box": one.box is not None,
            "reward": one.reward,
            "colour": colour,
            "count": one.count,
            "sampler": one.sampler_logprob,
            "reference": one.ref_logp,
            "tokens": one.tokens,
            "flags": _flags(one.parse_ok, one.finish_reason)
            + [f"{_words(why)}: {n}" for why, n in sorted(one.left_out.items())],
            **self._text(one.text, prompt),
        }

    def _prediction(self, rank: int, one: Prediction, base: Prediction | None, prompt: Row) -> Json:
        label, number, style = self.models[one.model]
        compared = base is not None and one is not base
        flags = _flags(one.parse_ok, one.finish_reason)
        if compared and base is not None and base.text == one.text:
            flags.append("same answer as the base")
        return {
            "rank": rank,
            "model": one.model,
            "label": label,
            "number": number,
            "has_box": one.box is not None,
            "style": style if one.box is not None and one.saw_image else None,
            "reward": one.reward,
            "colour": reward_colour(min(max(one.reward, 0.0), 1.0)),
            "change": one.reward - base.reward if compared and base is not None else None,
            "other_image": one.other_image,
            "other_url": None,
            "flags": flags,
            **self._text(one.text, prompt),
        }

    def _text(self, text: str, prompt: Row) -> Json:
        """An answer; where the truth is a text, with the differences marked."""
        truth = prompt["gt_text"]
        if truth is None:
            return {"text": text, "marked": None}
        return {"text": text, "marked": text_beside_truth(text, truth, any_space=self.any_space)}


def model_styles(artifacts: Artifacts) -> dict[str, tuple[str, int, marks.Style]]:
    """For each model its label, its number in the style sheet, and how its boxes look."""
    labels = {}
    for method in reported_methods(artifacts.config):
        several = len(method.variants) > 1
        for variant in method.variants:
            labels[variant] = (variant if several else method.label, method.colour)
    found: dict[str, tuple[str, int, marks.Style]] = {}
    for test_set in artifacts.test_sets:
        for model in test_set.predictions:
            if model in found:
                continue
            number = len(found)
            label, colour = labels.get(model, (model, MORE_COLOURS[number % len(MORE_COLOURS)]))
            dash = marks.DASHED if model == BASE else marks.SOLID
            colour = BASE_COLOUR if model == BASE else colour
            found[model] = (label, number, marks.Style(colour, dash, 2.0))
    return found


def _colour(one: Sample, rewards: Sequence[float]) -> str:
    """As in the report: by the reward's place between the lowest and the highest of the list."""
    if one.reward is None:
        return reward_colour(0.5)
    low, high = min(rewards), max(rewards)
    return reward_colour((one.reward - low) / (high - low) if high > low else 1.0)


def _facts(prompt: Row) -> list[str]:
    size = f"{prompt['width']} x {prompt['height']} px"
    place = [prompt["place"]] if prompt["place"] else []
    notes = [", ".join(prompt["image_notes"])] if prompt["image_notes"] else []
    return [prompt["dataset"], prompt["split"], prompt["task"], *place, size, *notes]


def _extra(text: str | None) -> list[tuple[str, str]]:
    """The other columns of the dataset's row, as names and values."""
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return [("extra", str(text))]
    if not isinstance(found, dict):
        return [("extra", str(text))]
    return [
        (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in found.items()
    ]


def _source(found: str | Lost) -> Json:
    """The address of an image, or else why it is lost."""
    return {"lost": found.why} if isinstance(found, Lost) else {"source": found}


def _more(prompt: Row, source: Callable[[int], str | Lost]) -> list[Json]:
    """The prompt's images beside the one that boxes refer to, with their places among all."""
    facts = prompt.get(FACTS) or []
    total, own = len(facts) + 1, prompt.get("box_image") or 0
    places = [place for place in range(total) if place != own]
    return [
        {
            **_source(source(n)),
            "alt": f"image {place + 1} of {total}, {one['width']} x {one['height']} pixels",
        }
        for n, (place, one) in enumerate(zip(places, facts, strict=True), 1)
    ]


def _shown_size(width: int, height: int) -> tuple[int, int]:
    scale = min(WIDEST_PX / width, HIGHEST_PX / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _alt(prompt: Row, truth: Sequence[marks.Mark], boxes: int) -> str:
    parts = [f"{shown_question(prompt['prompt'])}, {prompt['width']} x {prompt['height']} pixels"]
    parts += [f"{boxes} answered boxes"] if boxes else []
    parts += [marks.describe(truth)] if truth else []
    return "; ".join(parts)


def _flags(parse_ok: bool | None, finish_reason: str) -> list[str]:
    flags = [] if parse_ok is not False else ["not read"]
    named = {"length": "cut off", "unanswered": "unanswered"}
    return flags + ([named[finish_reason]] if finish_reason in named else [])


def _words(reason: str) -> str:
    return reason.replace("_", " ")
