"""The graph of a run: which artifact is made by which stage, from which others.

This is the one description of it: Make, `perpo run` and `perpo status` read it, and so does every
stage that checks its inputs. It follows from the configuration alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from perpo_pipeline.advice import STAGE_OF, VARIANT_OPTION
from perpo_pipeline.config.evaluations import BASE
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.config.sources import PerpoJsonSource

Key = tuple[str, str]  # artifact and variant
DEFAULT = "default"
STAGES = ("prepare", "sample", "score", "filter", "train", "eval", "report")
"""In the order in which they run."""
ORDER = tuple(STAGE_OF)
"""The artifacts, in the order in which they are made."""


@dataclass(frozen=True)
class Node:
    """One artifact of a run: its variant, the stage that makes it, and what that stage reads.

    `needs` are the nodes that the stage takes from the run by name, not all of the lineage: scores
    need samples, and read the prompts that these samples belong to.
    """

    artifact: str
    variant: str
    stage: str
    needs: tuple[Key, ...] = ()

    @property
    def key(self) -> Key:
        return self.artifact, self.variant

    @property
    def name(self) -> str:
        """As its place in the run's folder: `adapter/perpo`."""
        return f"{self.artifact}/{self.variant}"

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the command that makes it, without `perpo` and the run's own options."""
        option = "--split" if self.stage == "prepare" else VARIANT_OPTION.get(self.artifact)
        return (self.stage, option, self.variant) if option else (self.stage,)


def nodes(config: RunConfig) -> list[Node]:
    """Every artifact that the run makes, each after what it needs."""
    return [
        *(Node("prompts", split, "prepare") for split in config.prepare),
        *_lists(config),
        *_adapters(config),
        *_evaluations(config),
        _report(config),
    ]


def _lists(config: RunConfig) -> Iterator[Node]:
    """From prompts to preferences. Released lists are samples and scores of `perpo prepare`."""
    split = config.sample.split
    released = isinstance(config.prepare[split], PerpoJsonSource)
    sample, score = ("prepare", "prepare") if released else ("sample", "score")
    yield Node("samples", split, sample, (("prompts", split),))
    yield Node("scores", split, score, (("samples", split),))
    yield Node("preferences", split, "filter", (("scores", split),))


def _adapters(config: RunConfig) -> Iterator[Node]:
    for variant in config.train.variants():
        yield Node("adapter", variant, "train", (("preferences", config.sample.split),))


def _evaluations(config: RunConfig) -> Iterator[Node]:
    for one in config.evaluations():
        trained = () if one.model == BASE else (("adapter", one.model),)
        yield Node("predictions", one.name, "eval", (("prompts", one.split), *trained))
        yield Node("metrics", one.name, "eval", (("predictions", one.name),))


def _report(config: RunConfig) -> Node:
    split = config.sample.split
    needs = [
        *(("metrics", name) for name in config.eval_variants()),
        *(("adapter", name) for name in config.eval_models() if name != BASE),
        ("scores", split),
        ("preferences", split),
    ]
    return Node("report", DEFAULT, "report", tuple(needs))
