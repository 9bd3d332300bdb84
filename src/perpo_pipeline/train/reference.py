"""Reference log-probabilities: computed once per list with training's own forward, then cached.

Every epoch, method and ablation on the same lists and base shares them. They never come from the
sampler, whose numerics differ.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from perpo_pipeline.bars import Bar
from perpo_pipeline.config.fingerprints import STAGE_VERSIONS, counted_settings
from perpo_pipeline.config.train import TrainSettings
from perpo_pipeline.errors import Stopped
from perpo_pipeline.inference.journal import Journal
from perpo_pipeline.interrupts import signal_of
from perpo_pipeline.run import Run, make
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.finding import made_version
from perpo_pipeline.store.writing import Recipe, Writer
from perpo_pipeline.train.batches import (
    ListCollator,
    TrainingBatch,
    raise_failure,
)
from perpo_pipeline.train.engine import memory_explained, reference_logps
from perpo_pipeline.train.image_workers import (
    PassedOn,
    deaths_explained,
    num_workers,
    worker_arguments,
)
from perpo_pipeline.train.lists import TrainingList
from perpo_pipeline.train.processes import World
from perpo_pipeline.train.sharded_weights import is_sharded
from perpo_pipeline.train.token_budget import Forward

if TYPE_CHECKING:
    from perpo_pipeline.vlm.models import Vlm

STAGE_VERSION = STAGE_VERSIONS["reference"]
LISTS_PER_PART = 512
LISTS_PER_CALL = 16  # encoded together, then grouped by length


def reference_recipe(
    preferences: Version,
    model_settings: Mapping[str, Any],
    forward: Forward,
    image: str | None = None,
) -> Recipe:
    """What the log-probabilities of the lists depend on: see `make_reference`."""
    shown = {} if image is None else {"shown_image": image}
    return Recipe(
        "reference",
        preferences.variant + ("" if image is None else f"-{image}-image"),
        "reference",
        STAGE_VERSION,
        counted_settings("reference", None, {**model_settings, "forward": forward, **shown}),
        {"preferences": preferences},
    )


def make_reference(
    run: Run,
    vlm: "Vlm",
    preferences: Version,
    lists: Sequence[TrainingList],
    settings: TrainSettings,
    model_settings: Mapping[str, Any],
    forward: Forward,
    place: Path,
    world: World = World(),  # noqa: B008 (frozen)
    image: str | None = None,
) -> Version:
    """Compute or find the reference log-probabilities of `lists`, one row per list, in their order.

    They depend on the base model, its preprocessing, the forward and the preferences, and not on
    the method or its training settings. `image` says which image the lists have, if not their own.
    Each list is computed by one of the processes; the first process writes.
    """
    recipe = reference_recipe(preferences, model_settings, forward, image)
    collate = ListCollator(
        vlm,
        model_settings["preprocess"],
        forward,
        settings.max_tokens_per_forward,
        settings.row_lengths,
    )
    parts = [lists[i : i + LISTS_PER_PART] for i in range(0, len(lists), LISTS_PER_PART)]
    announced: list[bool] = []

    def work(writer: Writer) -> Mapping[str, Any]:
        announced.append(True)
        _write_parts(writer, parts, shares)
        return {"lists": len(lists)}

    bar = run.bar(
        "reference log-probabilities" + ("" if image is None else f", {image} images"),
        len(lists),
        unit="lists",
        wave=LISTS_PER_CALL * world.size,
        doing="the first lists",
    )
    shares = _Shares(vlm, settings, collate, world, bar)
    with bar:
        if world.is_first:
            make(run, recipe, work, out=place)
            if not announced:  # the artifact was found
                world.broadcast(dict[int, list[int]]())
        else:
            for index, starts in world.broadcast(dict[int, list[int]]()).items():
                for found in shares.logps(parts[index], starts):
                    world.gather(found)
        world.wait()
    return made_version(place, recipe)


def _write_parts(
    writer: Writer, parts: Sequence[Sequence[TrainingList]], shares: "_Shares"
) -> None:
    """In the first process: compute what is missing together with the others, and write it.

    A part takes up the rounds that an earlier sitting left in the journal.
    """
    world, journal = shares.world, Journal(writer.path, writer.recipe.fingerprint)
    unwritten = [i for i in range(len(parts)) if not writer.has_part(i)]
    kept = {index: {r["prompt_id"]: r for r in journal.read(index)} for index in unwritten}
    missing = world.broadcast({i: shares.rounds_without(parts[i], kept[i]) for i in unwritten})
    left = sum(shares.num_lists(parts[index], starts) for index, starts in missing.items())
    total = sum(map(len, parts))
    shares.bar.skip(total - left)
    try:
        for index, starts in missing.items():
            for found in shares.logps(parts[index], starts):
                rows = [
                    _row(prompt_id, logps) for s in world.gather(found) for prompt_id, logps in s
                ]
                kept[index] |= {row["prompt_id"]: row for row in rows}
                journal.add(index, rows)
                left -= len(rows)
            ids = [entry.prompt["prompt_id"] for entry in parts[index]]
            writer.write_part(index, [kept[index][prompt_id] for prompt_id in ids])
            journal.drop(index)
    except KeyboardInterrupt as interrupt:
        raise Stopped(
            f"reference {writer.recipe.variant} interrupted; the log-probabilities of "
            f"{total - left:,} of {total:,} lists are kept, the same command goes on from there",
            signal_of(interrupt),
        ) from None
    finally:
        journal.flush()


def _row(prompt_id: str, logps: list[float]) -> dict[str, Any]:
    return {"prompt_id": prompt_id, "ref_logps": logps}


@dataclass(frozen=True)
class _Shares:
    """One process's share of the lists of a part.

    With sharded weights (sharded_weights.py) all processes take part in each forward, so they run
    the same number of them: a process with fewer lists adds dummies.
    """

    vlm: "Vlm"
    settings: TrainSettings
    collate: ListCollator
    world: World
    bar: Bar

    @property
    def per_round(self) -> int:
        """The lists of a part that all processes compute at a time."""
        return LISTS_PER_CALL * self.world.size

    def rounds_without(self, part: Sequence[TrainingList], kept: Mapping[str, Any]) -> list[int]:
        """Where the rounds begin that have a list which is not in `kept`."""
        return [
            start
            for start in range(0, len(part), self.per_round)
            if any(e.prompt["prompt_id"] not in kept for e in part[start : start + self.per_round])
        ]

    def num_lists(self, part: Sequence[TrainingList], starts: Sequence[int]) -> int:
        """The number of lists in these rounds."""
        return sum(min(self.per_round, len(part) - start) for start in starts)

    def logps(
        self, part: Sequence[TrainingList], starts: Sequence[int]
    ) -> Iterator[list[tuple[str, list[float]]]]:
        """For each round, prompt_id and log-probabilities of each list of the share."""
        world = self.world
        mine = [[*part[s + world.rank : s + self.per_round : world.size]] for s in starts]
        calls = self._calls([entry for round_ in mine for entry in round_])
        for start, own in zip(starts, mine, strict=True):
            with deaths_explained():
                batches = _batches(next(calls, {"batches": []}))
            if is_sharded(self.vlm.model) and (missing := world.max(len(batches)) - len(batches)):
                batches += _batches(self.collate([part[0]])) * missing
            with memory_explained(self.settings):
                found = reference_logps(self.vlm.model, batches)
            self.bar.update(self.num_lists(part, [start]))
            yield [(e.prompt["prompt_id"], found[e.prompt["prompt_id"]]) for e in own]

    def _calls(self, own: Sequence[TrainingList]) -> Iterator[dict[str, Any]]:
        """The share's batches, LISTS_PER_CALL lists at a time."""
        if not own:
            return iter(())
        device = self.vlm.device.type
        workers = num_workers(self.settings.num_workers, device)
        loader: DataLoader[TrainingList] = DataLoader(
            PassedOn(len(own)),
            sampler=own,
            batch_size=LISTS_PER_CALL,
            collate_fn=self.collate.for_workers() if workers else self.collate,
            **worker_arguments(workers, device),
        )
        return iter(loader)


def _batches(call: Mapping[str, Any]) -> list[TrainingBatch]:
    raise_failure(call)
    return list(call["batches"])
