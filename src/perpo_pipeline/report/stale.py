"""Which parts of the page are not what the configuration describes, with --allow-stale."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from perpo_pipeline.config.evaluations import read_evaluation
from perpo_pipeline.report.inputs import Inputs
from perpo_pipeline.run import Run
from perpo_pipeline.status.check import Check
from perpo_pipeline.status.expected import differences
from perpo_pipeline.status.graph import nodes
from perpo_pipeline.status.lineage import Traced, trace
from perpo_pipeline.store.artifacts import Version


@dataclass(frozen=True)
class Stale:
    """The reasons as lines: all of them, and those of each section of the page by its id."""

    lines: tuple[str, ...] = ()
    sections: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def stale_parts(run: Run, inputs: Inputs) -> Stale:
    """What `Run.latest` would refuse; nothing without --allow-stale, since it then has.

    A section shows a stale artifact if that is anywhere in the lineage of its figures. A version in
    that lineage which is not the one in use is stale, too.
    """
    if not run.allow_stale:
        return Stale()
    check = Check(run.config)
    found = check.find(nodes(run.config)[-1].needs).silent
    reasons = [reason for reason in found.values() if reason.kind != "missing"]
    lines = {str(reason): reason.node.key for reason in reasons}
    sections = {}
    for section, versions in _sections(inputs).items():
        shown = trace(versions)
        older = filter(None, (_not_in_use(check, traced) for traced in shown))
        keys = {(traced.artifact, traced.variant) for traced in shown}
        sections[section] = tuple([*(one for one, key in lines.items() if key in keys), *older])
    every = dict.fromkeys([*lines, *(line for own in sections.values() for line in own)])
    return Stale(tuple(every), sections)


def _not_in_use(check: Check, traced: Traced) -> str | None:
    """A line for a version that the run no longer uses, with the settings that it was made with."""
    key = (traced.artifact, traced.variant)
    used = check.in_use(key) if key in check.nodes else None
    if used is None or used.manifest["fingerprint"] == traced.fingerprint:
        return None
    manifest = {} if traced.version is None else traced.version.manifest
    other = differences(key, manifest, check.config) if manifest else []
    settings = f", made with {'; '.join(map(str, other))}" if other else ""
    return f"{traced.artifact}/{traced.variant}: an older version than the run's now{settings}"


def _sections(inputs: Inputs) -> dict[str, Iterable[Version]]:
    """The versions whose figures each section shows."""
    main = inputs.main.split
    on_main = [v for name, v in inputs.metrics.items() if read_evaluation(name).split == main]
    compared = dict.fromkeys(("headline", "table", "paired", "pictures"), on_main)
    return {
        **compared,
        "missing": inputs.metrics.values(),
        "slices": inputs.metrics.values(),
        "test-sets": inputs.metrics.values(),
        "benchmarks": inputs.benchmarks.values(),
        "lists": inputs.adapters.values(),
        "samples": [inputs.preferences],
        "training": inputs.adapters.values(),
    }
