"""The calls of stages that the cells need, each once: cells with equal settings share them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic_core import to_jsonable_python

from perpo_pipeline.config.fingerprints import COUNTED
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.config.section import Json, Section
from perpo_pipeline.status.calls import Call, calls
from perpo_pipeline.status.expected import section_of, value_of
from perpo_pipeline.status.graph import Key, Node
from perpo_pipeline.store.writing import fingerprint_of
from perpo_pipeline.sweep.cells import Cell


@dataclass(frozen=True)
class Step:
    """One call of a stage, for all cells in which it makes the same.

    `id` stands for the settings that count and for the ids in `needs`, which are made before it.
    `cell` is the first cell that has it.
    """

    id: str
    call: Call
    needs: tuple[str, ...]
    cell: Cell

    @property
    def stage(self) -> str:
        return self.call.stage

    @property
    def config(self) -> RunConfig:
        return self.cell.config

    @property
    def kind(self) -> tuple[str, str, str]:
        """Steps of one kind take about the same time for each prompt or list."""
        return self.config.run, self.stage, self.cell.method if self.stage == "train" else ""

    @cached_property
    def references(self) -> tuple[str, ...]:
        """What stands for the reference log-probabilities that a training reads: for the lists, and
        for those behind blank images, if its method needs them.

        Trainings on the same lists share them where the model and the forward are the same.
        """
        settings = self.config.train.variants()[self.call.group] if self.stage == "train" else None
        if settings is None or not settings.chosen_method.needs_preferences:
            return ()
        counted = {
            key: settings.forward if key == "train.forward" else _recorded(self.config, key)
            for key in COUNTED["reference"].others
        }
        other = settings.reference_of(self.config.model)
        counted["model.revision"] = self.config.model.revision
        if other is not None:
            counted |= {"model.id": other.id, "model.revision": other.revision}
        images = ("own", "blank") if settings.chosen_method.blank_image else ("own",)
        return tuple(
            fingerprint_of({"counted": counted, "needs": self.needs, "images": shown})
            for shown in images
        )

    @property
    def title(self) -> str:
        """`train perpo, train.beta 0.5, seed 1`; of shared steps the stage and its split."""
        if self.stage in ("train", "eval"):
            on = f" on {' and '.join(self.config.eval.splits)}" if self.stage == "eval" else ""
            return f"{self.stage} {self.cell.title}{on}"
        return self.call.title


def make_steps(cells: Sequence[Cell]) -> tuple[dict[str, Step], list[str]]:
    """All steps by id, each after those it needs, and for each cell the id of its evaluation."""
    steps: dict[str, Step] = {}
    last = []
    for cell in cells:
        made: dict[Key, str] = {}
        for call in _calls_of(cell):
            needs = tuple(dict.fromkeys(made[need] for need in call.needs))
            counted = [_counted(node, cell.config) for node in call.made]
            where = str(cell.config.run_dir)  # versions of another run are not this run's
            id = fingerprint_of(
                {"in": where, "stage": call.stage, "counted": counted, "needs": needs}
            )
            steps.setdefault(id, Step(id, call, needs, cell))
            made |= {node.key: id for node in call.made}
        last.append(id)
    return steps, last


def _calls_of(cell: Cell) -> Iterator[Call]:
    """The calls that lead to the cell's evaluation, which is the last one."""
    every = calls(cell.config)
    (last,) = (call for call in every if call.stage == "eval" and call.group == cell.method)
    wanted = {last}
    for call in reversed(every):  # those that make what is needed come before
        made = {node.key for node in call.made}
        if any(made.intersection(one.needs) for one in wanted):
            wanted.add(call)
    yield from (call for call in every if call in wanted)


def _counted(node: Node, config: RunConfig) -> Json:
    """The settings that may change an artifact, as far as the configuration says them."""
    declared = COUNTED[node.artifact]
    if node.artifact == "prompts":
        own = config.prepare[node.variant].model_dump(mode="json")
    else:
        section = section_of(declared, node.variant, config)
        own = {} if section is None else _own(section)
    others = [*declared.others, *declared.through_facts]
    if "model.id" in others:
        others += [f"model.{name}" for name in ModelConfig.counted_by_content]
    return {
        "artifact": node.artifact,
        "variant": node.variant,
        "own": own,
        "others": {key: _recorded(config, key) for key in others},
    }


def _own(section: Section) -> Json:
    """The section's settings that may change a result: of files and models that it names, too."""
    named = section.model_dump(mode="json", include=set(section.counted_by_content))
    return {**section.result_settings(), **{k: v for k, v in named.items() if v is not None}}


def _recorded(config: RunConfig, key: str) -> Any:
    return to_jsonable_python(value_of(config, key))
