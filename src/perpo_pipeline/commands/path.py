"""`perpo path`."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from perpo_pipeline.commands.options import (
    DEFAULT_CONFIG,
    Config,
    Debug,
    RunName,
    Set,
    read_config,
)
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.suggestions import did_you_mean

if TYPE_CHECKING:
    from perpo_pipeline.config.run import RunConfig


def path(
    artifact: Annotated[
        str,
        typer.Argument(
            metavar="ARTIFACT[/VARIANT]",
            help="e.g. samples, adapter/perpo, metrics/perpo@test; the variant may be left out "
            "where the run has only one",
        ),
    ],
    config: Config = DEFAULT_CONFIG,
    sets: Set = None,
    run: RunName = None,
    debug: Debug = False,
) -> None:
    """Print the folder of the version that is in use.

    An artifact's folder holds one folder for each version, and the file `current`, which names the
    one in use. What differs from the configuration is named on stderr.

    Example: perpo path samples --config configs/demo.yaml

    Example: perpo path adapter/perpo --config configs/demo.yaml
    """
    from perpo_pipeline import advice
    from perpo_pipeline.errors import ArtifactError
    from perpo_pipeline.status.check import Check
    from perpo_pipeline.store.artifacts import CURRENT, open_version

    settings = read_config(config, sets, run=run)
    name, variant = choose_variant(settings, artifact)
    place = settings.run_dir / name / variant
    if not (place / CURRENT).is_file():
        raise ArtifactError(
            f"the run '{settings.run}' has no finished {name} '{variant}' yet",
            where=str(place),
            fix=f"run: {advice.remake(name, variant)}",
        )
    version = open_version(place, name)
    for reason in Check(settings).find([(name, variant)]).silent.values():
        print(f"path: not as the configuration says: {reason}", file=sys.stderr)
    print(version.path)


def choose_variant(config: "RunConfig", asked: str) -> tuple[str, str]:
    """The artifact and variant that `asked` names.

    Raises ConfigError if neither the run's graph nor its folder has it, or if it has several.
    """
    known = _variants(config)
    name, slash, variant = asked.partition("/")
    if name not in known:
        raise ConfigError(
            f"this run has no artifact '{name}'{did_you_mean(name, list(known))}",
            fix=f"choose one of {', '.join(known)}",
        )
    if not slash and len(known[name]) > 1:
        raise ConfigError(
            f"this run has '{name}' of {len(known[name])} variants",
            fix=f"choose one: {', '.join(f'{name}/{one}' for one in known[name])}",
        )
    variant = variant or known[name][0]
    if variant not in known[name]:
        raise ConfigError(
            f"this run has no {name}/{variant}{did_you_mean(variant, known[name])}",
            fix=f"choose one of {', '.join(f'{name}/{one}' for one in known[name])}",
        )
    return name, variant


def _variants(config: "RunConfig") -> dict[str, list[str]]:
    """The variants of each artifact: those of the graph, then others that the run's folder has."""
    from perpo_pipeline.status.graph import nodes
    from perpo_pipeline.store.artifacts import CURRENT

    found: dict[str, list[str]] = {}
    for node in nodes(config):
        found.setdefault(node.artifact, []).append(node.variant)
    for pointer in sorted(config.run_dir.glob(f"*/*/{CURRENT}")):
        others = found.setdefault(pointer.parts[-3], [])
        if pointer.parts[-2] not in others:
            others.append(pointer.parts[-2])
    return found
