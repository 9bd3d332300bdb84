"""What a stage says about inputs that its run's configuration does not describe."""

from collections.abc import Sequence
from pathlib import Path

from perpo_pipeline import advice
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.status.check import Reason
from perpo_pipeline.status.expected import differences
from perpo_pipeline.status.graph import STAGES
from perpo_pipeline.status.lineage import trace
from perpo_pipeline.store.artifacts import Version

SHOWN = 3


def refuse_stale(config: RunConfig, stale: Sequence[Reason]) -> ArtifactError:
    """The error for inputs that are not as configured: all of them, and the stage to run first."""
    if len(stale) == 1:
        what = f"{stale[0]}"
    else:
        lines = "".join(f"\n  - {reason}" for reason in stale)
        what = f"{len(stale)} inputs are not what the configuration describes:{lines}"
    return ArtifactError(
        what,
        where=str(config.run_dir / stale[0].node.name),
        fix=f"run: {first_command(stale)}, {_the_rest()}; or take the inputs as they are with "
        "--allow-stale",
    )


def _the_rest() -> str:
    """What to run after the first stage."""
    if advice.current().arguments[:1] == ("run",):  # it was kept from running that stage
        return "then the same command"
    return f"then the stages after it ({advice.command('run')} runs all of them)"


def first_command(stale: Sequence[Reason]) -> str:
    """The whole command of the earliest stage that has to run again."""
    stage = min((reason.node.stage for reason in stale), key=STAGES.index)
    nodes = list(dict.fromkeys(r.node for r in stale if r.node.stage == stage))
    words = nodes[0].words if len(nodes) == 1 else (stage,)
    return advice.command(*words)


def as_given(config: RunConfig, version: Version, given: Path) -> str:
    """A line that names an input that an option gave, and how it differs from the configuration."""
    found = [
        f"{traced.artifact}/{traced.variant} made with {one}"
        for traced in trace([version])
        if traced.version is not None
        for one in differences((traced.artifact, traced.variant), traced.version.manifest, config)
    ]
    more = [f"and {len(found) - SHOWN} more settings"] * (len(found) > SHOWN)
    other = f": {'; '.join([*found[:SHOWN], *more])}" if found else ""
    return f"takes {version.artifact} from {given}, as given{other}"
