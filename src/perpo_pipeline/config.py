"""One pydantic model a stage, loaded from one YAML file a run; unknown keys are faults.

Every field is a setting that changes the result, and so counts in the fingerprint of what the stage
writes, unless it is listed in the section's `operational` names.
"""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from perpo_pipeline.boxes import get_box_format
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.prepare.sources import SOURCE_MODELS, SOURCE_NAMES, PrepareConfig
from perpo_pipeline.settings import Float, Int, Json, Name, Section
from perpo_pipeline.train.integrations import check_names

Weight = Annotated[Float, Field(gt=0)]
Method = Literal["perpo", "lipo", "lipo-lambda", "dpo", "sft"]
METHODS = get_args(Method)
BASE = "base"
OTHER_IMAGE, BLANK_IMAGE = "-other-image", "-blank-image"


class ModelConfig(Section):
    """The model and how it sees an image; the same for sampling, training and evaluation."""

    operational: ClassVar[frozenset[str]] = frozenset({"id", "revision", "device"})

    id: str = Field("testbed", description="hub id, local directory, or `testbed`")
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    preprocess: Literal["processor", "pad"] = Field(
        "processor", description="`pad`: pad to a square with the mean colour first"
    )
    box_format: str = Field("llava", description="a family's box text, or pkg.module:attribute")
    box_frame: Literal["full", "crop", "pad", "resized"] = Field(
        "full", description="what the numbers refer to (README, 'Boxes')"
    )

    @field_validator("box_format")
    @classmethod
    def _is_a_format(cls, name: str) -> str:
        try:
            get_box_format(name)
        except ConfigError as error:
            raise ValueError(error.what) from error
        return name

    @model_validator(mode="after")
    def _frame_fits(self) -> Self:
        if self.box_format == "qwen2.5-vl" and self.box_frame != "resized":
            raise ValueError(
                "box_format qwen2.5-vl is pixels of the resized image: set box_frame to resized"
            )
        if self.box_frame == "resized" and self.preprocess == "pad":
            raise ValueError(
                "box_frame resized is the whole image resized, which preprocess pad pads first: "
                "set preprocess to processor"
            )
        return self


class SampleConfig(Section):
    """How the candidates are drawn: from softmax(logits / T) and nothing else."""

    operational: ClassVar[frozenset[str]] = frozenset(
        {"max_errors", "split", "num_gpus", "gpu_memory_utilization", "base_url", "concurrency",
         "preview_reward"}
    )  # fmt: skip

    split: Name = Field("train", description="the prepared split to sample from")
    backend: Literal["auto", "transformers", "vllm", "openai"] = Field(
        "auto", description="`auto`: vllm on CUDA where it is installed, else transformers"
    )
    num_samples: Int = Field(20, ge=1)
    temperature: Float = Field(0.5, gt=0)
    top_k: Int | None = Field(None, ge=1, description="default: the whole vocabulary")
    top_p: Float = Field(1.0, gt=0, le=1)
    repetition_penalty: Float = Field(1.0, gt=0)
    max_new_tokens: Int = Field(64, ge=1)
    batch_size: Int = Field(16, ge=1, description="prompts decoded together")
    prompts_per_part: Int = Field(512, ge=1, description="rows are flushed after so many prompts")
    max_errors: Int = Field(0, ge=0, description="prompts that may fail before the stage fails")
    num_gpus: Int = Field(1, ge=1, description="processes, one a GPU, that share the prompts")
    gpu_memory_utilization: Float = Field(
        0.9, gt=0, le=1, description="share of a GPU's memory that vLLM takes"
    )
    base_url: str | None = Field(None, description="of an OpenAI-compatible server, with its /v1")
    served_model: str | None = Field(None, description="its name at the server; default: model.id")
    concurrency: Int = Field(16, ge=1, description="requests at a time (openai)")
    preview_reward: Literal["iou", "edit_similarity"] | None = Field(
        None, description="show the running parse rate and mean reward where there is truth"
    )


class ScoreConfig(Section):
    """How an answer is measured against the truth."""

    reward: str | dict[str, Weight] = Field(
        "auto",
        description="a name, pkg.module:function, or several with weights: {iou: 1, mine:f: 0.5}",
    )

    @field_validator("reward")
    @classmethod
    def _are_rewards(cls, reward: str | dict[str, float]) -> str | dict[str, float]:
        from perpo_pipeline.rewards.choice import AUTO, REWARDS

        known = [AUTO, *REWARDS]
        names = [reward] if isinstance(reward, str) else list(reward)
        unknown = [name for name in names if ":" not in name and name not in known]
        if unknown or not names:
            raise ValueError(
                f"there is no reward {', '.join(unknown) or 'at all'}; one of {', '.join(known)}, "
                "or your own as package.module:function"
            )
        return reward

    def weights(self) -> dict[str, float]:
        """The rewards that are added up, by name."""
        return {self.reward: 1.0} if isinstance(self.reward, str) else dict(self.reward)


def parse_reward(text: str | None) -> str | dict[str, float] | None:
    """What `--reward` says: a name, or `name=weight,name=weight`; raises ConfigError."""
    if text is None or "=" not in text:
        return text
    weights: dict[str, float] = {}
    for entry in text.split(","):
        name, _, weight = entry.rpartition("=")
        try:
            number = float(weight)
        except ValueError:
            number = 0.0
        if not name or number <= 0 or name in weights:
            raise ConfigError(
                f"--reward {text!r} cannot be read at {entry!r}",
                fix="give each name once, with a positive weight: --reward iou=0.7,token_f1=0.3",
            )
        weights[name] = number
    return weights


class FilterConfig(Section):
    """Which lists are worth learning from."""

    strategy: Literal["lists", "m3po"] = Field(
        "lists", description="whole lists, or the pair of each that M3PO chooses (README, 'Lists')"
    )
    min_margin: Float = Field(0.8, ge=0, le=1, description="max reward - min reward, at least")
    max_margin: Float | None = Field(None, ge=0, le=1, description="at most")
    list_size: Int | None = Field(None, ge=2, description="the first so many samples of each list")
    drop_unparsed: bool = Field(False, description="leave out answers that could not be read")
    equal_datasets: bool = Field(False, description="as many lists of every dataset")
    max_lists: Int | None = Field(3000, gt=0)
    seed: Int = Field(0, ge=0, description="which lists stay when there are more than max_lists")

    @model_validator(mode="after")
    def _margins_are_ordered(self) -> Self:
        if self.max_margin is not None and self.max_margin < self.min_margin:
            raise ValueError(
                f"max_margin {self.max_margin} is below min_margin {self.min_margin}: no list fits"
            )
        return self


class LoraSettings(Section):
    """Low-rank adapter on linear layers."""

    rank: Int = Field(128, gt=0)
    alpha: Int = Field(256, gt=0)


class TrainSettings(Section):
    """Settings of one training run; a method's own values override the shared ones."""

    # The operational ones change the result by no more than rounding.
    operational: ClassVar[frozenset[str]] = frozenset(
        {"max_tokens_per_step", "gradient_checkpointing", "compile", "num_workers",
         "checkpoint_every", "log_to"}
    )  # fmt: skip

    method: Method = "perpo"
    seed: Int = Field(0, ge=0)
    beta: Float = Field(0.1, gt=0)
    gamma: Float = Field(0.5, ge=0)
    label_smoothing: Float = Field(
        0.0, ge=0, lt=0.5, description="share of the preferences taken as flipped"
    )
    sft_weight: Float = Field(
        0.0, ge=0, description="weight of the best completion's loss per token, as an anchor"
    )
    learning_rate: Float = Field(5e-6, gt=0)
    epochs: Float = Field(1.0, gt=0)
    batch_size: Int = Field(8, ge=1, description="lists an optimiser step")
    max_tokens_per_step: Int = Field(
        10_240, ge=1, description="packed tokens a forward pass; lower it when memory runs out"
    )
    warmup_ratio: Float = Field(0.0, ge=0, le=1)
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: Float = Field(0.0, ge=0)
    max_grad_norm: Float = Field(1.0, gt=0)
    tuning: Literal["lora", "full"] = "lora"
    scope: list[Literal["language_model", "projector", "vision_tower"]] = Field(
        default=["language_model"], min_length=1, description="what is trained"
    )
    lora: LoraSettings = LoraSettings()
    forward: Literal["auto", "shared-prefix", "concatenated"] = Field(
        "auto", description="`concatenated`: one full row a completion, slow and safe"
    )
    compile: bool | None = Field(None, description="decoder layers; default: on CUDA")
    gradient_checkpointing: bool = Field(False, description="less memory, a third slower")
    num_workers: Int | None = Field(
        None, ge=0, description="processes that prepare images; default: several on CUDA, else 0"
    )
    drop_too_long: bool = Field(
        False, description="leave out lists longer than the context, instead of an error"
    )
    checkpoint_every: Int = Field(100, ge=1, description="optimiser steps")
    log_to: list[str] = Field(default_factory=list, description="integrations of Trainer")

    @field_validator("log_to")
    @classmethod
    def _are_integrations(cls, names: list[str]) -> list[str]:
        check_names(names)
        return names

    def fault(self) -> str | None:
        """What does not fit together (checked once shared and own settings are merged)."""
        if self.tuning == "lora" and self.scope == ["projector"]:
            return "scope [projector] leaves nothing for LoRA; use tuning: full"
        if self.method == "sft" and (self.sft_weight or self.label_smoothing):
            return "sft has no preferences: sft_weight and label_smoothing are not for it"
        return None


class TrainConfig(Section):
    """The methods to compare; settings of the section itself are shared by all of them."""

    shared: TrainSettings = TrainSettings()
    methods: dict[Name, TrainSettings] = Field(default_factory=lambda: {"perpo": TrainSettings()})
    seeds: list[Int] = Field(default_factory=lambda: [0], min_length=1)

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
        return self

    def variants(self) -> dict[str, TrainSettings]:
        """Adapter variants: one a method, or a method and seed where there are several seeds."""
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
                    f"methods.{name}: '{name}' is no method; add `method: ` one of {list(METHODS)}"
                )
            own["method"] = name
        return TrainSettings.model_validate(
            {**self.shared.model_dump(exclude_unset=True), **own, "seed": seed}
        )


class EvalConfig(Section):
    """What is evaluated, on which split; greedy decoding."""

    operational: ClassVar[frozenset[str]] = frozenset(
        {"models", "other_image", "blank_image", "allow_train_images"}
    )

    split: Name = "test"
    models: list[Name] | None = Field(
        None, min_length=1, description="default: base and every trained variant"
    )
    other_image: bool = Field(True, description="also with the image of another prompt")
    blank_image: bool = Field(True, description="also with an empty image")
    other_image_prompts: Int = Field(
        512, gt=0, description="how many are shown with another image, and with an empty one"
    )
    allow_train_images: bool = Field(
        False, description="evaluate an adapter on images that it was trained on"
    )
    max_new_tokens: Int = Field(64, ge=1)
    batch_size: Int = Field(64, ge=1)
    prompts_per_part: Int = Field(512, ge=1)


class ReportConfig(Section):
    """The page that shows what changed."""

    title: str = "PerPO"
    pictures: Int = Field(12, ge=0, description="examples with boxes before and after")
    num_resamples: Int = Field(10_000, ge=100, description="of the paired bootstrap")


class RunConfig(Section):
    """One run: a name, a seed, and a section a stage."""

    run: Name
    seed: Int = Field(0, ge=0)
    data_root: Path = Path("data")
    model: ModelConfig = ModelConfig()
    prepare: dict[Name, PrepareConfig]
    sample: SampleConfig = SampleConfig()
    score: ScoreConfig = ScoreConfig()
    filter: FilterConfig = FilterConfig()
    train: TrainConfig = Field(default_factory=lambda: TrainConfig.model_validate({}))
    eval: EvalConfig = EvalConfig()
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _names_refer_to_something(self) -> Self:
        splits = {"sample.split": self.sample.split, "eval.split": self.eval.split}
        faults = _unprepared(splits, list(self.prepare))
        known = [BASE, *self.train.variants()]
        for model in self.eval.models or []:
            if model not in known:
                faults.append(f"eval.models: '{model}' is not one of {known}")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def run_dir(self) -> Path:
        return self.data_root / self.run

    def eval_models(self) -> list[str]:
        """Names of the models to evaluate, `base` first."""
        every = [BASE, *self.train.variants()]
        return every if self.eval.models is None else self.eval.models

    def eval_variants(self) -> list[str]:
        """Names of the evaluations: a model with the right image, another one, or none."""
        models = self.eval_models()
        shown = {OTHER_IMAGE: self.eval.other_image, BLANK_IMAGE: self.eval.blank_image}
        return models + [m + image for image, wanted in shown.items() if wanted for m in models]


def model_of(evaluation: str) -> str:
    """The model that an evaluation is of: its name without the name of another image."""
    return evaluation.removesuffix(OTHER_IMAGE).removesuffix(BLANK_IMAGE)


def _unprepared(splits: Mapping[str, Any], prepared: list[str]) -> list[str]:
    """A fault for each setting that names a split which is not prepared."""
    return [
        f"{key}: '{split}' is not a split of `prepare` {prepared}"
        for key, split in splits.items()
        if split not in prepared
    ]


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, which YAML would silently overwrite."""


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> Json:
    seen: set[str] = set()
    for key_node, _ in node.value:
        key = str(loader.construct_object(key_node))
        if key in seen:
            raise yaml.MarkedYAMLError(
                problem=f"the key '{key}' is given twice", problem_mark=key_node.start_mark
            )
        seen.add(key)
    return {str(key): value for key, value in loader.construct_mapping(node, deep=True).items()}


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def load_config(path: Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Load a run's YAML file; `overrides` maps dotted keys to values that flags gave.

    Raises `ConfigError` with every fault of the file, each by its key.
    """
    raw = _read_yaml(path)
    for dotted, value in (overrides or {}).items():
        _set_dotted(raw, dotted, value)
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        faults = list(_explain(error))
        if not any("is not a split of" in fault for fault in faults):
            faults += _unprepared(*_raw_splits(raw))
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise ConfigError(
            f"{count} in the configuration:\n" + "\n".join(f"  - {fault}" for fault in faults),
            where=str(path), fix="correct these keys; configs/README.md lists every setting",
        ) from None  # fmt: skip


def _read_yaml(path: Path) -> Json:
    try:
        text = path.read_text(encoding="utf-8")
        raw = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.stem, [p.stem for p in path.parent.glob("*.yaml")])
        raise ConfigError(
            "no such configuration file", where=str(path),
            fix=f"did you mean {path.with_stem(near[0])}?" if near else "see the folder configs/",
        ) from None  # fmt: skip
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"the file cannot be read as YAML: {error}", where=str(path), fix="correct the file"
        ) from error
    if not isinstance(raw, dict):
        raise ConfigError(
            "the file holds no mapping of sections", where=str(path), fix="see configs/demo.yaml"
        )
    return raw


def _raw_splits(raw: Json) -> tuple[Json, list[str]]:
    """Splits named and prepared in a file that has faults elsewhere."""
    prepare = raw.get("prepare")
    named = {
        f"{section}.split": raw[section]["split"]
        for section in ("sample", "eval")
        if isinstance(raw.get(section), dict) and "split" in raw[section]
    }
    return (named, list(prepare)) if isinstance(prepare, dict) else ({}, [])


def _set_dotted(raw: Json, dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for key in parents:
        if not isinstance(raw.get(key), dict):
            raw[key] = {}
        raw = raw[key]
    raw[last] = value


def _explain(error: ValidationError) -> Iterator[str]:
    """One line a fault, by its key as it stands in the file."""
    for fault in error.errors(include_url=False, include_context=False):
        place = [str(part) for part in fault["loc"]]
        place = [p for i, p in enumerate(place) if (place[0], i, p) not in _NOT_IN_THE_FILE]
        key = ".".join(place) or "(file)"
        if fault["type"] == "extra_forbidden":
            yield f"{key}: no such setting{_suggestion(place)}"
        elif fault["type"] == "missing":
            yield f"{key}: is required"
        else:
            got = fault["input"]
            shown = f" (got {got!r})" if isinstance(got, str | int | float | bool) else ""
            yield f"{key}: {fault['msg'].removeprefix('Value error, ')}{shown}"


# Steps of pydantic's locations that are no keys of the file: (section, position, name).
_NOT_IN_THE_FILE = {("train", 1, "shared"), *(("prepare", 2, name) for name in SOURCE_NAMES)}


def _suggestion(place: list[str]) -> str:
    near = difflib.get_close_matches(place[-1], _names_beside(place), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _names_beside(place: list[str]) -> list[str]:
    """The settings that exist where `place` points."""
    if len(place) == 1:
        return list(RunConfig.model_fields)
    if place[-2] == "lora":
        return list(LoraSettings.model_fields)
    if place[0] == "prepare":
        return [name for model in SOURCE_MODELS for name in model.model_fields]
    if place[0] == "train":
        return [*TrainSettings.model_fields, "methods", "seeds"]
    section = RunConfig.model_fields[place[0]].annotation
    return list(section.model_fields) if isinstance(section, type(Section)) else []
