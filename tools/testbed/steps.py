"""What each step of the testbed's pretraining trains on: scenes, pages or both."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerFast

from tools.testbed.model import MODEL_SIZES
from tools.testbed.packing import Batch, PackedRows, RowWriter, Targets
from tools.testbed.page_errors import Misreading
from tools.testbed.page_rows import PageBatch, PageRows, PageWriter
from tools.testbed.recipe import SEEDS, Recipe


@dataclass(frozen=True)
class StepBatch:
    """What one process trains on in one step: scenes, pages or both."""

    parts: list[Batch | PageBatch]


class Steps(IterableDataset[StepBatch]):
    """The steps of a phase: step number `step` holds rows [step * B, (step + 1) * B) of each kind.

    So a run resumes at any step, and each process takes its share of every step.
    """

    def __init__(
        self,
        kinds: list[tuple[PackedRows | PageRows, int]],
        steps: range,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self._kinds, self._steps = kinds, steps
        self._rank, self._world = share

    def __iter__(self) -> Iterator[StepBatch]:
        worker = torch.utils.data.get_worker_info()
        offset, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for step in self._steps[offset::stride]:
            yield self.batch(step)

    def batch(self, step: int) -> StepBatch:
        """This process's rows of a step."""
        return StepBatch(
            [
                rows.batch(range(step * count + self._rank, (step + 1) * count, self._world))
                for rows, count in self._kinds
            ]
        )


def kinds_of_rows(
    phase: str, recipe: Recipe, preset: str, tokenizer: PreTrainedTokenizerFast, image_tokens: int
) -> list[tuple[PackedRows | PageRows, int]]:
    """Scenes and pages of the phase, each with its number in a step; none where that is zero."""
    wrong = phase == "misaligned"
    patch = MODEL_SIZES[preset].patch
    seed = SEEDS[phase] + recipe.seed * 10
    easy = 0 if wrong else recipe.vision_steps + recipe.easy_steps
    kinds: list[tuple[PackedRows | PageRows, int]] = []
    if recipe.scenes:
        scenes = PackedRows(
            RowWriter(tokenizer, image_tokens),
            preset=preset,
            patch=patch,
            seed=seed,
            slots=recipe.slots,
            targets=Targets(recipe.wrong_share, recipe.jitter) if wrong else Targets(),
            easy_rows=easy * recipe.scenes,
        )
        kinds.append((scenes, recipe.scenes))
    if recipe.pages:
        pages = PageRows(
            PageWriter(tokenizer, image_tokens),
            preset=preset,
            patch=patch,
            seed=seed,
            easy=range(recipe.vision_steps * recipe.pages, easy * recipe.pages),
            misreading=misreading(recipe) if wrong else None,
        )
        kinds.append((pages, recipe.pages))
    return kinds


def misreading(recipe: Recipe) -> Misreading:
    """The errors that the misaligned phase puts into pages."""
    return Misreading(
        across=recipe.across,
        skip=recipe.skip,
        swap=recipe.swap,
        repeat=recipe.repeat,
        look_alike=recipe.look_alike,
    )
