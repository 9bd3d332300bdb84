"""What brings a run up to date: the calls whose artifacts are not as configured, and why."""

from collections.abc import Sequence
from dataclasses import dataclass

from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.status.calls import Call
from perpo_pipeline.status.graph import Key, Node
from perpo_pipeline.status.states import State, states

MISSING = "missing"


@dataclass(frozen=True)
class Pending:
    """A call to make: the names in it that are not current, and the reasons in words."""

    call: Call
    names: tuple[str, ...]
    why: tuple[str, ...]


def find_pending(config: RunConfig, calls: Sequence[Call]) -> list[Pending]:
    """The calls to make, in their order; a call that reads what is made anew is one of them.

    Raises `ArtifactError` if another process makes one of the artifacts, or if one is broken.
    """
    states_of = {one.node.key: one for one in states(config)}
    late: set[Key] = set()
    found = []
    for call in calls:
        own = {node: list(_reasons(states_of[node.key])) for node in call.made}
        behind = {node: [need for need in node.needs if need in late] for node in call.made}
        names = [n.words[2] for n in call.made if n.words[2:] and (own[n] or behind[n])]
        if any(own.values()) or any(behind.values()):
            found.append(Pending(call, tuple(dict.fromkeys(names)), _words(own, behind)))
            late |= {n.key for n in call.made if not n.words[2:] or n.words[2] in names}
    for pending in found:
        for node in pending.call.made:
            _refuse(states_of[node.key])
    return found


def _reasons(state: State) -> list[str]:
    """Why an artifact has to be made, in words; nothing if it is current."""
    if state.state == "current":
        return []
    if state.state == "stale":
        return list(state.why)
    if state.state == "interrupted":
        return [f"{state.node.name} was interrupted, {'; '.join(state.why)} are kept"]
    return [MISSING]


def _words(own: dict[Node, list[str]], behind: dict[Node, list[Key]]) -> tuple[str, ...]:
    """The reasons of a call: those of its nodes, or else what it follows from."""
    if all(reasons == [MISSING] for reasons in own.values()):
        return (MISSING,)
    reasons = dict.fromkeys(
        f"{node.name} is missing" if reason == MISSING else reason
        for node, found in own.items()
        for reason in found
    )
    follows = dict.fromkeys(f"{need[0]}/{need[1]}" for found in behind.values() for need in found)
    causes = [reason for reason in reasons if not reason.startswith("follows ")]
    return tuple(causes or reasons) or tuple(f"follows {need}" for need in follows)


def _refuse(state: State) -> None:
    if state.error is not None:
        raise state.error
    if state.state == "under way":
        raise ArtifactError(
            f"another process is making {state.node.name}",
            where=str(state.path),
            fix="wait until that process ends, then run the same command",
        )
