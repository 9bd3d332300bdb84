"""Which settings make a new version of which artifact: the one place that declares it.

The fingerprint of a version is a hash of these settings, of the inputs and of the stage's version
(store/artifacts.py). A stage passes its section and what it found out by itself to
`counted_settings`, which compares both with the declaration here and returns what counts.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perpo_pipeline.config.backends import BACKENDS
from perpo_pipeline.config.methods import METHODS
from perpo_pipeline.config.section import Json, Section

if TYPE_CHECKING:
    from perpo_pipeline.config.model import ModelConfig
    from perpo_pipeline.config.run import RunConfig

IMAGE_SIZE = ("model.min_pixels", "model.max_pixels", "model.max_tiles")
WEIGHTS = ("model.id", "model.trust_remote_code", "model.dtype", "model.quantization")
TEMPLATE = ("model.template_date", "model.system_prompt", "model.chat_template_kwargs")
MODEL = (*WEIGHTS, "model.preprocess", *TEMPLATE, *IMAGE_SIZE)
BOXES = ("model.box_format", "model.box_frame")
READING = (*BOXES, "model.answer.thinking", "model.answer.tag", "model.answer.which")
# Under these names a manifest records settings whose value is not what the file says:
# `model` is the identity of the weights, whatever their id or directory is called.
RECORDED_AS = {"model.id": "model"}
# Settings that name, together with another one, what counts.
NAMED_WITH = {"model.revision": "model.id"}
# Recorded only where the model's chat template writes a date.
WHERE_USED = frozenset({"template_date"})
# Recorded only where they are set: older artifacts, which have none, were made without them.
WHERE_SET = frozenset(
    {
        *("quantization", "min_pixels", "max_pixels", "max_tiles", "shown_image"),
        *("system_prompt", "chat_template_kwargs", "earlier_lists", "trust_remote_code"),
        "reference_model",
    }
)


def _nothing(_: Mapping[str, Any]) -> Collection[str]:
    return ()


@dataclass(frozen=True)
class Counted:
    """What changes the content of an artifact.

    Every setting of `section` counts, except those that the section calls operational; beside them
    count the dotted keys in `others`, and `facts`: what the stage finds out and no setting says,
    such as the hash of a user's reward. With `any_facts` the stage names its facts itself;
    `through_facts` are the settings that such facts depend on.
    `unused` returns the names that have no effect beside the values of the others.
    """

    section: str | None = None
    others: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    any_facts: bool = False
    through_facts: tuple[str, ...] = ()
    unused: Callable[[Mapping[str, Any]], Collection[str]] = _nothing


def _unused_by_backend(settings: Mapping[str, Any]) -> Collection[str]:
    """Settings of `sample` or `eval` that a backend does not read."""
    return BACKENDS[settings["backend"]].ignores


def _unused_by_rewards(settings: Mapping[str, Any]) -> Collection[str]:
    """Boxes unless a reward reads them, normal forms of texts unless a reward compares texts."""
    from perpo_pipeline.rewards.choice import compares_texts, reads_geometry

    rewards = settings["reward"]
    boxes = () if any(map(reads_geometry, rewards)) else _leaves(BOXES)
    return boxes if any(map(compares_texts, rewards)) else (*boxes, "normalise")


def _boxes_unless_trained_on_the_truth(settings: Mapping[str, Any]) -> Collection[str]:
    """A true box becomes a text in the model's format; sampled completions stay as they are."""
    return () if METHODS[settings["method"]].trains_on == "truth" else _leaves(BOXES)


def _unused_in_predictions(settings: Mapping[str, Any]) -> Collection[str]:
    """What the backend does not read, and the number of prompts shown with a wrong image."""
    of_conditions = ("condition_prompts",) if settings["image"] == "matching" else ()
    return (*of_conditions, *_unused_by_backend(settings))


def _unused_in_metrics(settings: Mapping[str, Any]) -> Collection[str]:
    """No slices are asked for."""
    return () if settings["by"] else ("by",)


def _leaves(keys: Collection[str]) -> tuple[str, ...]:
    return tuple(RECORDED_AS.get(key, key.rpartition(".")[2]) for key in keys)


COUNTED: dict[str, Counted] = {
    "prompts": Counted("prepare", any_facts=True, through_facts=("seed", *BOXES)),
    "samples": Counted("sample", ("seed", *MODEL), unused=_unused_by_backend),
    "scores": Counted("score", READING, facts=("own_rewards",), unused=_unused_by_rewards),
    "preferences": Counted("filter", facts=("earlier_lists",)),
    "reference": Counted(None, ("train.forward", *MODEL), facts=("shown_image",)),
    "adapter": Counted(
        "train",
        (*MODEL, *BOXES),
        facts=("reference_model",),
        unused=_boxes_unless_trained_on_the_truth,
    ),
    "predictions": Counted(
        "eval", (*MODEL, *READING), facts=("image", "reward"), unused=_unused_in_predictions
    ),
    "metrics": Counted(None, ("eval.by",), facts=("metrics",), unused=_unused_in_metrics),
    "harness": Counted(None, (*WEIGHTS, *IMAGE_SIZE), any_facts=True),
    "report": Counted(
        "report",
        ("run", "model.id", "eval.out_of_domain"),
        facts=("models", "evaluations", "methods"),
    ),
    "rounds": Counted("rounds", any_facts=True),
}


# Raised when a stage makes something else of the same settings and inputs.
STAGE_VERSIONS = {
    "prompts": 4,
    "samples": 2,
    "scores": 3,
    "preferences": 2,
    "reference": 2,
    "adapter": 2,
    "predictions": 4,
    "metrics": 4,
    "report": 4,
    "rounds": 1,
}
RELEASED_VERSION = 2  # of samples and scores that `perpo prepare` takes over
TRUTH_VERSION = 3  # of adapters trained on the truth: targets end with the chat template's token


def stage_version(artifact: str, stage: str, settings: Mapping[str, Any]) -> int:
    """The version of the stage that makes an artifact of these settings.

    `stage` is the name in the manifest: `perpo prepare` makes samples and scores, too.
    """
    if stage == "prepare" and artifact != "prompts":
        return RELEASED_VERSION
    method = METHODS.get(settings.get("method", "")) if artifact == "adapter" else None
    if method is not None and method.trains_on == "truth":
        return TRUTH_VERSION
    return STAGE_VERSIONS[artifact]


def counted_settings(artifact: str, section: Section | None, found: Mapping[str, Any]) -> Json:
    """The settings of an artifact's fingerprint, by name.

    `section` is the stage's own section; `found` has the values of the other settings that count
    and of the facts, under the names that the manifest records. Raises ValueError where `found`
    and the declaration differ: a setting that nobody declared would silently miss (or silently
    enter) the fingerprint.
    """
    declared = COUNTED[artifact]
    own = section.result_settings() if section is not None else {}
    expected = {*_leaves(declared.others), *declared.facts}
    missing = expected - set(found) - WHERE_USED - WHERE_SET
    undeclared = set() if declared.any_facts else set(found) - expected - set(own)
    if missing or undeclared:
        raise ValueError(
            f"the fingerprint of '{artifact}' misses {sorted(missing)} and has the undeclared "
            f"{sorted(undeclared)}: see COUNTED in config/fingerprints.py"
        )
    settings = {**own, **found}
    unused = set(declared.unused(settings))
    return {name: value for name, value in settings.items() if name not in unused}


def box_settings(model: "ModelConfig") -> Json:
    """How boxes are read and written, as a fingerprint records it."""
    return model.reading().box_settings()


def reading_settings(model: "ModelConfig") -> Json:
    """How completions are read, as a fingerprint records it: `box_settings` and more."""
    reading = model.reading()
    return {**reading.box_settings(), **reading.text_settings()}


def report_facts(config: "RunConfig") -> Json:
    """What a report shows: its models, evaluations and methods."""
    return {
        "models": config.eval_models(),
        "evaluations": config.eval_variants(),
        "methods": {n: one.result_settings() for n, one in config.train.variants().items()},
    }


def counts_in(key: str) -> list[str]:
    """The artifacts in whose fingerprint a setting counts, by its dotted key (`train.lora.rank`).

    It may have no effect beside other settings: see `Counted.unused`.
    """
    key = NAMED_WITH.get(key, key)
    section, _, rest = key.partition(".")
    name = rest.split(".")[-1] if section == "prepare" else rest.partition(".")[0]
    return [
        artifact
        for artifact, declared in COUNTED.items()
        if any(
            other == key or other.startswith(f"{key}.")
            for other in (*declared.others, *declared.through_facts)
        )
        or (declared.section == section and name not in _operational(section))
    ]


def _operational(section: str) -> frozenset[str]:
    """The settings of a section that never count, and neither does what they name."""
    from perpo_pipeline.config.run import RunConfig
    from perpo_pipeline.config.sources import SOURCE_MODELS
    from perpo_pipeline.config.train import TrainSettings

    if section == "train":
        return TrainSettings.operational - TrainSettings.counted_by_content
    if section == "prepare":
        return frozenset().union(*(model.operational for model in SOURCE_MODELS))
    kind: Any = RunConfig.model_fields[section].annotation
    return frozenset(kind.operational - kind.counted_by_content)
