"""The training settings: the methods to compare, and what is set for each of them."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Ge, Le
from pydantic import Field, field_validator, model_validator

from perpo_pipeline.config.by_task import TASKS, Task
from perpo_pipeline.config.evaluations import BASE, model_of
from perpo_pipeline.config.integrations import check_names
from perpo_pipeline.config.levers import LEVERS, lever_fault
from perpo_pipeline.config.levers import check_names as check_levers
from perpo_pipeline.config.methods import METHODS, Method
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.config.section import Float, Int, Json, Name, Section

TrainingSeed = Annotated[Int, Ge(0), Le(2**32 - 1)]
"""The Trainer seeds NumPy with it, which takes 32 bits."""


class LoraSettings(Section):
    """The LoRA adapter on the linear layers that `train.scope` names."""

    rank: Int = Field(128, gt=0, description="rank of the adapter's matrices")
    alpha: Int = Field(256, gt=0, description="the adapter's output is scaled by alpha / rank")


class TrainSettings(Section):
    """Settings of one training; a method's own values override the shared ones."""

    # These change the result by no more than rounding.
    operational: ClassVar[frozenset[str]] = frozenset(
        {
            "max_tokens_per_forward",
            "gradient_checkpointing",
            "activation_offload",
            "compile",
            "row_lengths",
            "levers",
            "num_workers",
            "num_processes",
            "checkpoint_every",
            "checkpoint_minutes",
            "log_to",
            "deepspeed",
            "reference_model",
            "reference_revision",
        }
    )
    counted_by_content: ClassVar[frozenset[str]] = frozenset(
        {"reference_model", "reference_revision"}
    )

    # Count only where they are set: older adapters, which do not have them, were trained on all
    # lists in random order.
    counted_where_set: ClassVar[frozenset[str]] = frozenset({"tasks", "order"})
    # Count only for a method that uses them: the others were trained before they existed.
    counted_where_used: ClassVar[frozenset[str]] = frozenset({"reward_temperature"})

    method: str = Field("perpo", description=f"the loss: {', '.join(METHODS)}")
    tasks: list[Task] | None = Field(
        None,
        min_length=1,
        description="train on the lists of these tasks alone, e.g. `[ocr]`; none: on all lists",
    )
    seed: TrainingSeed = Field(0, description="set by `train.seeds`")
    beta: Float = Field(
        0.1, gt=0, description="strength of the preferences; a low beta moves further from the base"
    )
    gamma: Float = Field(
        0.5, ge=0, description="exponent of the reward gap that weights a pair (perpo only)"
    )
    reward_temperature: Float = Field(
        0.1,
        gt=0,
        description="divides the rewards whose softmax is the target (infonca only); a low one "
        "leaves the best completions alone",
    )
    label_smoothing: Float = Field(
        0.0, ge=0, lt=0.5, description="assumed share of preferences that are the wrong way round"
    )
    sft_weight: Float = Field(
        0.0,
        ge=0,
        description="weight of an anchor: the best completion's negative log-probability per token",
    )
    reference_model: str | None = Field(
        None,
        min_length=1,
        description="hub id or folder of the model whose log-probabilities are the reference; "
        "none: the model that is trained, as it is before training",
    )
    reference_revision: str | None = Field(
        None, description="branch, tag or commit of `reference_model`, if that is a hub id"
    )
    order: Literal["widest-first"] | None = Field(
        None,
        description="order of the lists in each epoch: `widest-first` begins with those of the "
        "widest margin; none: random",
    )
    learning_rate: Float = Field(5e-6, gt=0, description="largest learning rate of AdamW")
    epochs: Float = Field(1.0, gt=0, description="passes over the lists; may be a fraction")
    batch_size: Int = Field(8, ge=1, description="lists per optimiser step, over all processes")
    max_tokens_per_forward: Int = Field(
        10_240,
        ge=1,
        description="packed tokens per forward pass; lower it when memory runs out",
    )
    warmup_ratio: Float = Field(
        0.0, ge=0, le=1, description="share of the steps in which the learning rate rises from 0"
    )
    lr_scheduler: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="how the learning rate falls after the warm-up"
    )
    weight_decay: Float = Field(0.0, ge=0, description="weight decay of AdamW")
    max_grad_norm: Float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    tuning: Literal["lora", "full"] = Field(
        "lora", description="train a LoRA adapter, or the weights themselves"
    )
    scope: list[Literal["language_model", "projector", "vision_tower"]] = Field(
        default=["language_model"], min_length=1, description="parts of the model that are trained"
    )
    lora: LoraSettings = Field(LoraSettings(), description="the adapter (tuning lora)")
    forward: Literal["auto", "shared-prefix", "separate"] = Field(
        "auto",
        description="read each prompt once for its whole list, or one full row per completion "
        "(separate: slow and safe); auto: shared-prefix where it is exact, by tests of the family "
        "or by proof on the model's own weights",
    )
    compile: bool | None = Field(
        None,
        description="compile the decoder layers (shared prefix only); none: on CUDA, without "
        "ZeRO-3 and quantised weights",
    )
    row_lengths: Literal["any", "bucketed"] = Field(
        "any",
        description="compiled layers take rows of any length, or (bucketed) are compiled for each "
        "of a few lengths, with up to 1/8 of padding",
    )
    levers: list[str] = Field(
        default_factory=list,
        description=f"speed-ups that no card has measured yet: {', '.join(LEVERS)}",
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations: less memory, a third slower"
    )
    activation_offload: bool = Field(
        False,
        description="keep the inputs of the decoder layers in the machine's memory until the "
        "backward pass; needs gradient_checkpointing",
    )
    num_processes: Int = Field(
        1,
        ge=1,
        description="processes on this machine, one per GPU, or several on a CPU; --num-processes "
        "replaces it",
    )
    num_workers: Int | None = Field(
        None,
        ge=0,
        description="processes that prepare images; none: up to 4 on CUDA (0 with little /dev/shm)",
    )
    drop_too_long: bool = Field(
        False, description="leave out lists that are longer than the model's context; else fail"
    )
    checkpoint_every: Int | None = Field(
        None, ge=1, description="also save a checkpoint every so many optimiser steps"
    )
    checkpoint_minutes: Float = Field(
        10.0,
        gt=0,
        description="minutes between checkpoints; more if saving would take above 5 % of the time",
    )
    log_to: list[str] = Field(
        default_factory=list, description="programs to log to, e.g. tensorboard or wandb"
    )
    deepspeed: str | None = Field(
        None, description="zero2, zero3, zero3-offload, or the path of a DeepSpeed settings file"
    )

    @field_validator("method")
    @classmethod
    def _is_a_method(cls, name: str) -> str:
        if name not in METHODS:
            raise ValueError(f"no such method; choose one of {', '.join(METHODS)}")
        return name

    @field_validator("tasks")
    @classmethod
    def _each_task_once_in_order(cls, tasks: list[Task] | None) -> list[str] | None:
        return None if tasks is None else [task for task in TASKS if task in tasks]

    @field_validator("forward", mode="before")
    @classmethod
    def _name_the_new_value(cls, value: Any) -> Any:
        if value == "concatenated":
            raise ValueError("the value 'concatenated' was renamed: use 'separate'")
        return value

    @field_validator("log_to")
    @classmethod
    def _are_integrations(cls, names: list[str]) -> list[str]:
        check_names(names)
        return names

    @field_validator("levers")
    @classmethod
    def _are_levers(cls, names: list[str]) -> list[str]:
        check_levers(names)
        return names

    @property
    def chosen_method(self) -> Method:
        """The record of `method`."""
        return METHODS[self.method]

    def result_settings(self) -> Json:
        """The settings that change the result, for the fingerprint."""
        uses = self.chosen_method.uses
        unused = {name for name in self.counted_where_used if not uses(name)}
        return {k: v for k, v in super().result_settings().items() if k not in unused}

    def learns(self, task: str) -> bool:
        """Whether lists of this task are trained on."""
        return self.tasks is None or task in self.tasks

    def fault(self) -> str | None:
        """What does not fit together (checked once shared and own settings are merged)."""
        if self.reference_revision is not None and self.reference_model is None:
            return "reference_revision is of reference_model, which is not set; remove it"
        if self.tuning == "lora" and self.scope == ["projector"]:
            return "scope [projector] leaves nothing for LoRA; use tuning: full"
        if self.activation_offload and not self.gradient_checkpointing:
            return (
                "activation_offload needs gradient_checkpointing: true, which leaves only the "
                "inputs of layers to keep; to copy all activations takes longer than to compute "
                "them again"
            )
        if self.forward == "separate" and self.compile:
            return (
                "compile: true has no use with forward: separate, whose rows have another length "
                "at each step; remove it"
            )
        if fault := lever_fault(
            self.levers,
            tuning=self.tuning,
            forward=self.forward,
            row_lengths=self.row_lengths,
            compiles=self.compile is not False,
            deepspeed=self.deepspeed,
        ):
            return fault
        extras = {"sft_weight": self.sft_weight, "label_smoothing": self.label_smoothing}
        unused = [name for name, value in extras.items() if value]
        return _unused_fault(self.chosen_method, unused)

    def reference_of(self, model: ModelConfig) -> ModelConfig | None:
        """The model that gives the reference log-probabilities, if it is not the trained one: it
        sees images and prompts as `model` does. None, too, for a method without a reference."""
        if self.reference_model is None or not self.chosen_method.needs_preferences:
            return None
        other = {"id": self.reference_model, "revision": self.reference_revision}
        return model.model_copy(update=other)


def _unused_fault(method: Method, given: Sequence[str]) -> str | None:
    """The fault of giving a method settings that it does not use; None if it uses all of them."""
    unused = [name for name in given if not method.uses(name)]
    if not unused:
        return None
    why = "" if method.needs_preferences else " has no preferences and"
    return f"{method.name}{why} does not use {' and '.join(unused)}; remove what is unused"


class TrainConfig(Section):
    """The methods to compare; all of them share the settings of the section itself."""

    shared: TrainSettings = TrainSettings()
    methods: dict[Name, TrainSettings] = Field(
        default_factory=lambda: {"perpo": TrainSettings()},
        description="the trainings by name, each with its own settings; an entry whose name is not "
        "a method must set `method`",
    )
    seeds: list[TrainingSeed] = Field(
        default_factory=lambda: [0], min_length=1, description="train each method once per seed"
    )

    @field_validator("seeds")
    @classmethod
    def _each_seed_once(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{seeds} names a seed twice")
        return seeds

    @model_validator(mode="before")
    @classmethod
    def _gather_shared(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        own = {k: raw[k] for k in ("methods", "seeds") if k in raw}
        if isinstance(own.get("methods"), Mapping):
            own["methods"] = {k: {} if v is None else v for k, v in own["methods"].items()}
        return {"shared": {k: v for k, v in raw.items() if k not in own}, **own}

    @model_validator(mode="after")
    def _every_variant_is_whole(self) -> Self:
        for name, settings in (*self.methods.items(), ("shared", self.shared)):
            if "seed" in settings.model_fields_set:
                raise ValueError(f"{name}: give `seeds: [...]` of the section instead of `seed`")
        for name, settings in self.variants().items():
            if name == BASE or name != model_of(name):
                raise ValueError(f"methods.{name}: this name is reserved; choose another")
            if fault := settings.fault():
                raise ValueError(f"methods.{name}: {fault}")
        for name in self.methods:
            if fault := self._unused_setting(name):
                raise ValueError(f"methods.{name}: {fault}")
        return self

    def _unused_setting(self, name: str) -> str | None:
        """A method's own setting that it does not use can only be a mistake; a shared one serves
        the other methods."""
        method = self._settings_of(name, self.seeds[0]).chosen_method
        return _unused_fault(method, sorted(self.methods[name].model_fields_set))

    def methods_that_take(self, path: Sequence[str]) -> tuple[list[str], list[str]]:
        """Names of the methods that use a setting: with the shared value, and with their own.

        `path` has the parts of its key after `train.`, such as ("lora", "rank").
        """
        users = [
            name
            for name in self.methods
            if self._settings_of(name, self.seeds[0]).chosen_method.uses(path[0])
        ]
        own = [name for name in users if _sets(self.methods[name], path)]
        return [name for name in users if name not in own], own

    def variants(self) -> dict[str, TrainSettings]:
        """The settings of each adapter: one per method, or one per method and seed if several."""
        several = len(self.seeds) > 1
        return {
            f"{name}-seed{seed}" if several else name: self._settings_of(name, seed)
            for name in self.methods
            for seed in self.seeds
        }

    def _settings_of(self, name: str, seed: int) -> TrainSettings:
        own = self.methods[name].model_dump(exclude_unset=True)
        if "method" not in own and "method" not in self.shared.model_fields_set:
            if name not in METHODS:
                raise ValueError(
                    f"methods.{name}: there is no method '{name}'; set its `method` to one of "
                    f"{', '.join(METHODS)}"
                )
            own["method"] = name
        shared = self.shared.model_dump(exclude_unset=True)
        if "lora" in own:  # a method that sets the rank keeps the shared alpha
            own["lora"] = {**shared.get("lora", {}), **own["lora"]}
        return TrainSettings.model_validate({**shared, **own, "seed": seed})


def _sets(section: Section, path: Sequence[str]) -> bool:
    """Whether a section sets the value at `path` itself."""
    first, *rest = path
    if first not in section.model_fields_set:
        return False
    inner = getattr(section, first)
    return _sets(inner, rest) if rest and isinstance(inner, Section) else True
