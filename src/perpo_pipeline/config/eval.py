"""The settings of evaluation."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from perpo_pipeline import advice
from perpo_pipeline.config.by_task import ByTask
from perpo_pipeline.config.evaluations import Evaluation
from perpo_pipeline.config.inference import Decoding, InferenceConfig, Positive
from perpo_pipeline.config.section import Int, Name, NormalForms, several_faults


def _as_list(value: Any) -> Any:
    """A single name is a list of one."""
    return [value] if isinstance(value, str) else value


def _each_once(names: list[str]) -> list[str]:
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ValueError(f"{', '.join(map(repr, twice))} is named twice")
    return names


Splits = Annotated[list[Name], BeforeValidator(_as_list), AfterValidator(_each_once)]


class EvalConfig(InferenceConfig):
    """What is evaluated, on which splits; greedy decoding."""

    section: ClassVar[str] = "eval"
    operational: ClassVar[frozenset[str]] = InferenceConfig.operational | {
        "splits",
        "models",
        "conditions",
        "condition_splits",
        "out_of_domain",
        "allow_train_images",
        "by",  # counts in the metrics alone: nothing is decoded again
    }

    splits: Splits = Field(
        default=["test"],
        min_length=1,
        description="the prepared splits to evaluate on; the first is the main one",
    )
    models: list[Name] | None = Field(
        None, min_length=1, description="models to evaluate; none: base and every trained method"
    )
    conditions: list[Literal["other-image", "blank-image"]] = Field(
        default=["other-image", "blank-image"],
        description="also evaluate each model with another prompt's image, and with a blank one",
    )
    condition_splits: Splits | None = Field(
        None,
        min_length=1,
        description="those of `splits` on which `conditions` are evaluated; none: the first split",
    )
    condition_prompts: Int = Field(
        512, gt=0, description="number of prompts in each of the evaluations with a wrong image"
    )
    out_of_domain: Splits = Field(
        default=[],
        description="those of `splits` whose data differ in kind from the training data; the "
        "report shows them under a heading of their own",
    )
    allow_train_images: bool = Field(
        False,
        description="evaluate an adapter even on images that it was trained on; the prompts that "
        "choose a sweep's setting or a round may then show images of those that are reported",
    )
    normalise: NormalForms = Field(
        default=[],
        description="normal forms of the true and the answered text before they are compared: "
        f"`none`, one, or several in a list ({advice.page('rewards')}); the tables name them",
    )
    by: Splits = Field(
        default=[],
        description="extra columns of the data, such as category: each metric is also measured on "
        f"the prompts of each of their values, its slices ({advice.page('evaluation')})",
    )
    batch_size: ByTask[Positive] = Field(
        64,
        description="prompts decoded together; counts because another size may round differently; "
        "may differ by task",
    )
    max_errors: Int = Field(
        0,
        ge=0,
        description="prompts that may stay unanswered, each of which counts as wrong, before the "
        "stage fails",
    )

    @model_validator(mode="after")
    def _names_are_splits(self) -> Self:
        named = {"condition_splits": self.condition_splits, "out_of_domain": self.out_of_domain}
        faults = [
            (f"eval.{setting}", f"'{split}' is not one of eval.splits {self.splits}")
            for setting, splits in named.items()
            for split in splits or ()
            if split not in self.splits
        ]
        if faults:
            raise several_faults(faults)
        return self

    def evaluations_of(self, model: str) -> list[Evaluation]:
        """A model's evaluations: with the right images on every split, then with wrong images."""
        wrong = self.splits_with_wrong_images()
        return [
            *(Evaluation(model, split) for split in self.splits),
            *(Evaluation(model, split, f"-{c}") for split in wrong for c in self.conditions),
        ]

    def splits_with_wrong_images(self) -> list[str]:
        """The splits on which `conditions` are evaluated."""
        return self.splits[:1] if self.condition_splits is None else self.condition_splits

    def decoding(self, task: str | None = None) -> Decoding:
        """One completion per prompt, with the most likely token at every step."""
        return Decoding(self.longest(task))
