"""The calls of stages that make a run: what one process does at a time, in the order of the graph.

One call evaluates a model on all its splits and images, so the model is loaded once.
"""

from dataclasses import dataclass

from perpo_pipeline.config.evaluations import read_evaluation
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.status.graph import STAGES, Key, Node, nodes


@dataclass(frozen=True)
class Call:
    """One call of a stage: the split, method or model that it is about, if any, and its nodes."""

    stage: str
    group: str
    made: tuple[Node, ...]

    @property
    def title(self) -> str:
        """The stage, and the split, method or model that it is called for: `eval perpo`."""
        return f"{self.stage} {self.group}".rstrip()

    @property
    def names(self) -> tuple[str, ...]:
        """The values of the stage's option: a split, a method, or the evaluations of a model."""
        return tuple(dict.fromkeys(node.words[2] for node in self.made if node.words[2:]))

    @property
    def needs(self) -> tuple[Key, ...]:
        """What the call reads and another call makes, each once."""
        own = {node.key for node in self.made}
        return tuple(dict.fromkeys(n for node in self.made for n in node.needs if n not in own))


def calls(config: RunConfig) -> list[Call]:
    """All calls of a run, each after those that make what it needs."""
    groups: dict[tuple[str, str], list[Node]] = {}
    for node in nodes(config):
        groups.setdefault((node.stage, _group(node)), []).append(node)
    found = [Call(stage, group, tuple(made)) for (stage, group), made in groups.items()]
    return sorted(found, key=lambda call: STAGES.index(call.stage))


def _group(node: Node) -> str:
    """What one call of the node's stage makes together."""
    if node.stage == "eval":
        return read_evaluation(node.variant).model
    return node.variant if node.words[1:] else ""
