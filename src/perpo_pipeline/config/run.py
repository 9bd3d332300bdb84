"""One pydantic model per stage, loaded from one YAML file per run; unknown keys are faults.

Every field is a setting that changes the result, and so counts in the fingerprint of what the stage
writes, unless the section lists it in `operational`. Descriptions are shown by `perpo settings`.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from perpo_pipeline.answers.formats import frame_fault, get_box_format
from perpo_pipeline.config.evaluations import BASE
from perpo_pipeline.config.section import Float, Int, Name, Section, conflict, several_faults
from perpo_pipeline.config.sources import PrepareConfig
from perpo_pipeline.config.train import TrainConfig
from perpo_pipeline.errors import ConfigError


class ModelConfig(Section):
    """The model and how it sees an image; the same for sampling, training and evaluation."""

    operational: ClassVar[frozenset[str]] = frozenset({"revision", "device"})

    id: str = Field(
        "testbed",
        description="hub id, local directory, or `testbed` for the shipped model; the fingerprint "
        "counts the model's content, not its name",
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="number format of the weights; `auto`: bfloat16 on CUDA, else float32. The "
        "chosen format counts",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where the model runs; `auto`: CUDA if torch finds it"
    )
    preprocess: Literal["processor", "pad"] = Field(
        "processor",
        description="`processor`: what the model's own processor does; `pad`: first pad the image "
        "to a square with the mean colour",
    )
    box_format: str = Field(
        "llava",
        description="how the model writes a box and how it is asked for one: the name of a format "
        "(docs/boxes.md), or pkg.module:attribute for your own",
    )
    box_frame: Literal["full", "crop", "pad", "resized"] = Field(
        "full",
        description="what the numbers of a box refer to: the full image, its centre square, the "
        "padded square, or the image as Qwen2.5-VL resizes it (docs/boxes.md)",
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
        if fault := frame_fault(self.box_format, self.box_frame):
            raise conflict(fault, "box_format", "box_frame")
        if self.box_frame == "resized" and self.preprocess == "pad":
            raise conflict(
                "box_frame resized is the whole image resized, which preprocess pad pads first: "
                "set preprocess to processor",
                "box_frame",
                "preprocess",
            )
        return self


class SampleConfig(Section):
    """How the candidates are drawn: from softmax(logits / T) and nothing else."""

    operational: ClassVar[frozenset[str]] = frozenset(
        {
            "max_errors",
            "split",
            "num_gpus",
            "gpu_memory_utilization",
            "base_url",
            "concurrency",
            "preview_reward",
            "engine",
            "num_actors",
            "ray_address",
        }
    )

    split: Name = Field("train", description="the prepared split to sample from")
    backend: Literal["auto", "transformers", "vllm", "openai"] = Field(
        "auto",
        description="what draws the completions; `auto`: vllm if CUDA is there and vllm is "
        "installed, else transformers; `openai`: any OpenAI-compatible server",
    )
    num_samples: Int = Field(20, ge=1, description="completions per prompt")
    temperature: Float = Field(0.5, gt=0, description="T of softmax(logits / T)")
    top_k: Int | None = Field(
        None, ge=1, description="draw from the k likeliest tokens; none: the whole vocabulary"
    )
    top_p: Float = Field(
        1.0, gt=0, le=1, description="draw from the likeliest tokens that have this probability"
    )
    repetition_penalty: Float = Field(
        1.0, gt=0, description="divides the logits of tokens that were used before; 1: off"
    )
    max_new_tokens: Int = Field(64, ge=1, description="longest completion, in tokens")
    batch_size: Int = Field(
        16,
        ge=1,
        description="prompts decoded together; counts because another size may round differently",
    )
    prompts_per_part: Int = Field(
        512, ge=1, description="prompts per file; a killed stage resumes after the last whole file"
    )
    max_errors: Int = Field(0, ge=0, description="prompts that may fail before the stage fails")
    num_gpus: Int = Field(
        1, ge=1, description="processes that share the prompts, one per GPU (engine local)"
    )
    engine: Literal["local", "ray"] = Field(
        "local",
        description="who draws: processes on this machine, or actors of a Ray cluster "
        "(docs/sampling.md)",
    )
    num_actors: Int | None = Field(
        None,
        ge=1,
        description="Ray actors that share the prompts; none: one per GPU, or one per machine "
        "without GPUs",
    )
    ray_address: str | None = Field(
        None,
        description="the Ray cluster to join: `auto` or host:port; none: RAY_ADDRESS, else a new "
        "cluster on this machine",
    )
    gpu_memory_utilization: Float = Field(
        0.9, gt=0, le=1, description="share of each GPU's memory that vLLM takes"
    )
    base_url: str | None = Field(
        None, description="address of the OpenAI-compatible server, with its /v1 (backend openai)"
    )
    served_model: str | None = Field(
        None, description="the model's name at the server (backend openai); none: `model.id`"
    )
    concurrency: Int = Field(
        16, ge=1, description="requests that are open at a time (backend openai)"
    )
    preview_reward: Literal["iou", "edit_similarity"] | None = Field(
        None,
        description="reward whose running mean, with the parse rate, is shown during sampling for "
        "prompts that have a ground truth",
    )


class ScoreConfig(Section):
    """How an answer is measured against the truth."""

    reward: str | dict[str, float] = Field(
        "auto",
        description="a reward (docs/rewards.md), your own as pkg.module:function, or several "
        "with weights: `{iou: 0.7, token_f1: 0.3}`",
    )

    @field_validator("reward", mode="before")
    @classmethod
    def _are_rewards(cls, reward: Any) -> Any:
        from perpo_pipeline.rewards.choice import AUTO, REWARDS

        known = [AUTO, *REWARDS]
        if not isinstance(reward, str) and not _are_weights(reward):
            raise ValueError("give the name of a reward, or names with positive weights")
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


def _are_weights(value: Any) -> bool:
    """Whether it maps names to positive numbers."""
    return isinstance(value, Mapping) and all(
        isinstance(name, str)
        and isinstance(weight, int | float)
        and not isinstance(weight, bool)
        and 0 < weight < math.inf
        for name, weight in value.items()
    )


class FilterConfig(Section):
    """Which lists are worth learning from."""

    strategy: Literal["lists", "m3po"] = Field(
        "lists",
        description="keep whole lists, or one pair per list as M3PO chooses it (docs/rewards.md)",
    )
    min_margin: Float = Field(
        0.8, ge=0, le=1, description="smallest kept margin: highest minus lowest reward of a list"
    )
    max_margin: Float | None = Field(
        None, ge=0, le=1, description="largest kept margin; none: no limit"
    )
    list_size: Int | None = Field(
        None, ge=2, description="use only the first n samples of each list; none: all"
    )
    drop_unparsed: bool = Field(
        False, description="leave out completions that could not be read, before the margin"
    )
    equal_datasets: bool = Field(
        False, description="keep the same number of lists from each dataset"
    )
    max_lists: Int | None = Field(
        3000, gt=0, description="keep at most this many lists, chosen at random; null: all"
    )
    seed: Int = Field(
        0, ge=0, description="seed of the random choice when there are more than `max_lists`"
    )

    @model_validator(mode="after")
    def _margins_are_ordered(self) -> Self:
        if self.max_margin is not None and self.max_margin < self.min_margin:
            raise conflict(
                f"max_margin {self.max_margin} is below min_margin {self.min_margin}: no list fits",
                "max_margin",
                "min_margin",
            )
        return self


class EvalConfig(Section):
    """What is evaluated, on which split; greedy decoding."""

    operational: ClassVar[frozenset[str]] = frozenset(
        {"models", "conditions", "allow_train_images"}
    )

    split: Name = Field("test", description="the prepared split to evaluate on")
    models: list[Name] | None = Field(
        None, min_length=1, description="models to evaluate; none: base and every trained method"
    )
    conditions: list[Literal["other-image", "blank-image"]] = Field(
        default=["other-image", "blank-image"],
        description="also evaluate each model with another prompt's image, and with a blank one",
    )
    condition_prompts: Int = Field(
        512, gt=0, description="number of prompts in each of the evaluations with a wrong image"
    )
    allow_train_images: bool = Field(
        False, description="evaluate an adapter even on images that it was trained on"
    )
    max_new_tokens: Int = Field(64, ge=1, description="longest completion, in tokens")
    batch_size: Int = Field(64, ge=1, description="prompts decoded together")
    prompts_per_part: Int = Field(
        512, ge=1, description="prompts per file; a killed stage resumes after the last whole file"
    )


class ReportConfig(Section):
    """The page that shows what changed."""

    title: str = Field("PerPO", description="title of the page")
    pictures: Int = Field(
        12, ge=0, description="number of example images with the boxes before and after"
    )
    num_resamples: Int = Field(10_000, ge=100, description="resamples of the paired bootstrap")


class RunConfig(Section):
    """One run: a name, a seed, and one section per stage."""

    operational: ClassVar[frozenset[str]] = frozenset({"run", "data_root"})

    run: Name = Field(description="name of the run, and of its folder under `data_root`")
    seed: Int = Field(
        0, ge=0, description="seed of rendered prompts, of samples and of `per_dataset`"
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

    @model_validator(mode="after")
    def _names_refer_to_something(self) -> Self:
        splits = {"sample.split": self.sample.split, "eval.split": self.eval.split}
        faults = find_unprepared(splits, list(self.prepare))
        known = [BASE, *self.train.variants()]
        for model in self.eval.models or []:
            if model not in known:
                faults.append(("eval.models", f"'{model}' is not one of {known}"))
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

    def eval_variants(self) -> list[str]:
        """Names of the evaluations: a model with the right image, another one, or none."""
        models = self.eval_models()
        return models + [f"{m}-{image}" for image in self.eval.conditions for m in models]


def find_unprepared(splits: Mapping[str, Any], prepared: list[str]) -> list[tuple[str, str]]:
    """(setting, fault) for each setting that names a split which is not prepared."""
    return [
        (setting, f"'{split}' is not a split of `prepare` {prepared}")
        for setting, split in splits.items()
        if split not in prepared
    ]
