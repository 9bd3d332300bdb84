"""What brings a run up to date: the calls whose artifacts are not as configured, and why."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.status.calls import Call
from perpo_pipeline.status.check import Check
from perpo_pipeline.status.graph import Key, Node
from perpo_pipeline.store.artifacts import STARTED, being_written

MISSING = "missing"


@dataclass(frozen=True)
class Pending:
    """A call to make: the names in it that are not current, and the reasons in words."""

    call: Call
    names: tuple[str, ...]
    why: tuple[str, ...]


def find_pending(check: Check, calls: Sequence[Call]) -> list[Pending]:
    """The calls to make, in their order; a call that reads what is made anew is one of them.

    Raises `ArtifactError` if another process writes one of the artifacts, or if a manifest cannot
    be read.
    """
    late: set[Key] = set()
    found = []
    for call in calls:
        own = {node: list(_why(check, node)) for node in call.made}
        behind = {node: [need for need in node.needs if need in late] for node in call.made}
        names = [n.words[2] for n in call.made if n.words[2:] and (own[n] or behind[n])]
        if any(own.values()) or any(behind.values()):
            found.append(Pending(call, tuple(dict.fromkeys(names)), _words(own, behind)))
            late |= {n.key for n in call.made if not n.words[2:] or n.words[2] in names}
    for pending in found:
        _refuse_under_way(check, pending)
    return found


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
    return tuple(reasons) or tuple(f"follows from {need}" for need in follows)


def _why(check: Check, node: Node) -> Iterator[str]:
    """Why a node is not current by itself; nothing if it is, or if an option explains it."""
    if check.in_use(node.key) is None:
        begun = any(check.place(node.key).glob(f"*/{STARTED}"))
        yield f"{node.name} is unfinished" if begun else MISSING
        return
    for reason in check.find([node.key]).silent.values():
        if reason.node == node:
            yield reason.text


def _refuse_under_way(check: Check, pending: Pending) -> None:
    for node in pending.call.made:
        for path in check.place(node.key).glob(f"*/{STARTED}"):
            if being_written(path.parent):
                raise ArtifactError(
                    f"another process is making {node.name}",
                    where=str(path.parent),
                    fix="wait until that process ends, then run the same command",
                )
