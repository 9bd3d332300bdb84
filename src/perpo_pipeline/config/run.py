"""A run's settings: one pydantic model per stage, each in the module named like its section.

Every field is a setting that changes the result, and so counts in the fingerprint of what the stage
writes, unless the section lists it in `operational`. Descriptions are shown by `perpo settings`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from perpo_pipeline.config.by_task import task_faults
from perpo_pipeline.config.eval import EvalConfig
from perpo_pipeline.config.evaluations import BASE, Evaluation
from perpo_pipeline.config.filter import FilterConfig
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.config.report import ReportConfig
from perpo_pipeline.config.rounds import RoundsConfig
from perpo_pipeline.config.sample import SampleConfig
from perpo_pipeline.config.score import ScoreConfig
from perpo_pipeline.config.section import LARGEST_SEED, Int, Name, Section, several_faults
from perpo_pipeline.config.sources import SEVERAL, PrepareConfig, list_sources, task_of_source
from perpo_pipeline.config.train import TrainConfig


class RunConfig(Section):
    """One run: a name, a seed, and one section per stage."""

    operational: ClassVar[frozenset[str]] = frozenset({"run", "data_root"})

    run: Name = Field(description="name of the run, and of its folder under `data_root`")
    seed: Int = Field(
        0,
        ge=0,
        le=LARGEST_SEED,
        description="seed of rendered prompts, of samples and of `per_dataset`",
    )
    data_root: Path = Field(Path("data"), description="folder that holds the runs")
    model: ModelConfig = ModelConfig()
    prepare: dict[Name, PrepareConfig]
    sample: SampleConfig = SampleConfig()
    score: ScoreConfig = ScoreConfig()
    filter: FilterConfig = FilterConfig()
    train: TrainConfig = Field(default_factory=lambda: TrainConfig.model_validate({}))
    eval: EvalConfig = EvalConfig()
    report: ReportConfig = ReportConfig()
    rounds: RoundsConfig = RoundsConfig()

    @field_validator("prepare", mode="before")
    @classmethod
    def _take_lists_of_sources(cls, prepare: Any) -> Any:
        """A list of sources is one source, `several`; a list of one is that one."""
        if not isinstance(prepare, Mapping):
            return prepare
        return {
            split: source
            if not isinstance(source, list)
            else source[0]
            if len(source) == 1
            else {"source": SEVERAL, "of": source}
            for split, source in prepare.items()
        }

    @model_validator(mode="after")
    def _names_refer_to_something(self) -> Self:
        splits = {"sample.split": self.sample.split, "eval.splits": self.eval.splits}
        faults = find_unprepared(splits, list(self.prepare))
        known = [BASE, *self.train.variants()]
        for model in self.eval.models or []:
            if model not in known:
                faults.append(("eval.models", f"'{model}' is not one of {known}"))
        if faults:
            raise several_faults(faults)
        return self

    @model_validator(mode="after")
    def _tasks_have_their_settings(self) -> Self:
        faults = [
            *self.task_faults("filter", [self.sample.split]),
            *self.task_faults("sample", [self.sample.split]),
            *self.task_faults("eval", self.eval.splits),
            *self._untrained_tasks(),
        ]
        if faults:
            raise several_faults(faults)
        return self

    def task_faults(self, name: str, splits: Sequence[str]) -> list[tuple[str, str]]:
        """The faults of a section's settings by task, where the splits' sources say their tasks."""
        tasks = self.tasks_of(splits)
        section = getattr(self, name)
        if tasks is None:
            return []
        return task_faults(section.values_by_task(name), tasks, " and ".join(splits))

    def _untrained_tasks(self) -> list[tuple[str, str]]:
        """A fault for each task that a method names and no list can have."""
        tasks, split = self.tasks_of([self.sample.split]), self.sample.split
        named = {
            "train.tasks": self.train.shared,
            **{f"train.methods.{name}.tasks": one for name, one in self.train.methods.items()},
        }
        return [
            (key, f"no prompt of {split} has the task {task}")
            for key, one in named.items()
            for task in one.tasks or ()
            if tasks is not None and task not in tasks
        ]

    def tasks_of(self, splits: Sequence[str]) -> list[str] | None:
        """The tasks of prompts of these splits; None where only the data say it."""
        sources = [one for split in splits for one in list_sources(self.prepare[split])]
        tasks = list(dict.fromkeys(task_of_source(one) for one in sources))
        return None if None in tasks else [task for task in tasks if task is not None]

    @model_validator(mode="after")
    def _quantisation_fits(self) -> Self:
        how = self.model.quantization
        if how is None:
            return self
        remove = "remove model.quantization"
        server = f"a server holds its own weights, whatever model.quantization says ({how})"
        faults = [
            (f"{name}.backend", f"{server}: use transformers or vllm, or {remove}")
            for name, section in (("sample", self.sample), ("eval", self.eval))
            if section.backend == "openai"
        ]
        variants = self.train.variants().values()
        if any(one.tuning == "full" for one in variants):
            full = "full trains the weights themselves, which model.quantization"
            faults.append(
                ("train.tuning", f"{full} keeps in few bits ({how}): use lora, or {remove}")
            )
        if any(one.deepspeed for one in variants):
            zero = "DeepSpeed was not tried with quantised weights"
            fix = f"several processes need none: use --num-processes alone, or {remove}"
            faults.append(("train.deepspeed", f"{zero} (model.quantization: {how}); {fix}"))
        if faults:
            raise several_faults(faults)
        return self

    @property
    def run_dir(self) -> Path:
        return self.data_root / self.run

    def eval_models(self) -> list[str]:
        """Names of the models to evaluate, `base` first."""
        every = [BASE, *self.train.variants()]
        return every if self.eval.models is None else self.eval.models

    def evaluations(self) -> list[Evaluation]:
        """All evaluations of the run, those of one model together."""
        return [one for model in self.eval_models() for one in self.eval.evaluations_of(model)]

    def eval_variants(self) -> list[str]:
        """The names of all evaluations."""
        return [evaluation.name for evaluation in self.evaluations()]


def find_unprepared(splits: Mapping[str, Any], prepared: list[str]) -> list[tuple[str, str]]:
    """(setting, fault) for each setting that names a split, or several, not all prepared."""
    return [
        (setting, f"'{split}' is not a split of `prepare` {prepared}")
        for setting, named in splits.items()
        for split in (named if isinstance(named, list) else [named])
        if split not in prepared
    ]
