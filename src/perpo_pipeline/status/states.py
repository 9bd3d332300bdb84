"""The state of each artifact of a run, for `perpo status` and `perpo run`."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.status.check import Check, Reason, own_reasons
from perpo_pipeline.status.graph import ORDER, Key, Node
from perpo_pipeline.status.options import options_of
from perpo_pipeline.store.artifacts import MANIFEST, MERGED, STARTED, Json, being_written

Named = Literal["current", "stale", "missing", "under way", "interrupted", "broken"]


@dataclass(frozen=True)
class State:
    """What there is of one artifact.

    `why` says what differs from the configuration, what is there of an unfinished version, or what
    is broken; `asked` names the differences that options asked for. `path` is the version that is
    meant, `size` its bytes on disk, `age_s` the seconds since it was written.
    """

    node: Node
    state: Named
    why: Sequence[str] = ()
    asked: Sequence[str] = ()
    path: Path | None = None
    size: int = 0
    age_s: float | None = None
    error: ArtifactError | None = None


def states(config: RunConfig) -> list[State]:
    """The state of every artifact of the run, in the order in which they are made.

    A manifest that cannot be read is the state `broken` of that artifact. Raises ArtifactError
    where the run's folder is not one of a run.
    """
    _check_folder(config.run_dir)
    check = Check(config)
    broken: dict[Key, ArtifactError] = {}
    for key in check.nodes:
        try:
            check.in_use(key)
        except ArtifactError as error:
            broken[key] = error
            check.forget(key)
    return [_state(check, node, broken.get(node.key)) for node in check.nodes.values()]


def _check_folder(run_dir: Path) -> None:
    if not run_dir.exists():
        return
    inside = [p.name for p in run_dir.iterdir()] if run_dir.is_dir() else []
    known = {*ORDER, MERGED}
    own = [name for name in inside if name in known or name.startswith(".")]
    if not run_dir.is_dir() or (inside and not own):
        held = f"it holds {', '.join(sorted(inside)[:4])}" if inside else "it is a file"
        raise ArtifactError(
            f"this is not the folder of a run: {held}",
            where=str(run_dir),
            fix="correct the run's name (--run) or data_root, or move what is there away",
        )


def _state(check: Check, node: Node, error: ArtifactError | None) -> State:
    """The state of one node, whose error is already known if it is broken."""
    unfinished = list(_unfinished(check.place(node.key)))
    working = [path for path in unfinished if being_written(path)]
    if working:
        return _begun(check, node, "under way", working[0])
    if error is not None:
        why = [f"{error.what} ({error.where})"]
        return State(node, "broken", why, path=check.place(node.key), error=error)
    used = check.in_use(node.key)
    found = check.find([node.key])
    why = list(_why(node, list(found.silent.values())))
    if used is not None and not why:
        asked = [str(one) for one in found.accepted.values() if one.reason.node == node]
        return _made(node, "current", used.path, used.manifest, [], asked)
    for path in unfinished:
        if _would_resume(check, node, path):
            return _begun(check, node, "interrupted", path)
    if used is None:
        idle = all(node.key not in other.needs for other in check.nodes.values())
        unneeded = idle and node.artifact == "prompts"
        return State(node, "missing", ["nothing else of this run needs it"] if unneeded else [])
    return _made(node, "stale", used.path, used.manifest, why, [])


def _why(node: Node, silent: Sequence[Reason]) -> Iterator[str]:
    """The artifact's own reasons, and the artifacts that it follows because of theirs."""
    yield from (reason.text for reason in silent if reason.node == node)
    follows = dict.fromkeys(r.node.name for r in silent if r.node != node and r.kind != "missing")
    if follows:
        yield f"follows {', '.join(follows)}"


def _made(
    node: Node, state: Named, path: Path, manifest: Json, why: list[str], asked: list[str]
) -> State:
    made = datetime.fromisoformat(manifest["created_at"]).timestamp()
    return State(node, state, why, asked, path, size_of(path), time.time() - made)


def _begun(check: Check, node: Node, state: Named, path: Path) -> State:
    """An unfinished version, with how much is there."""
    written = max(file.stat().st_mtime for file in path.iterdir())
    age = time.time() - written
    return State(node, state, [_how_much(check, node, path)], (), path, size_of(path), age)


def size_of(path: Path) -> int:
    """The bytes of a folder; files that are removed meanwhile do not count."""
    total = 0
    for file in path.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except OSError:
            continue
    return total


def _unfinished(place: Path) -> Iterator[Path]:
    """The versions without a manifest, the newest first."""
    found = [file.parent for file in place.glob(f"*/{STARTED}")]
    unfinished = [path for path in found if not (path / MANIFEST).is_file()]
    yield from sorted(unfinished, key=lambda path: path.stat().st_mtime, reverse=True)


def _would_resume(check: Check, node: Node, path: Path) -> bool:
    """Whether the configuration's next command would go on with an unfinished version."""
    try:
        started = json.loads((path / STARTED).read_text(encoding="utf-8"))
        begun = {"notes": {}, **started}
        reasons = own_reasons(node, path, begun, check.config)
        inputs = check.inputs(node, path, begun, options_of(path, begun))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArtifactError):
        return False
    return not [r for r in (*reasons, *inputs) if r.kind in ("setting", "input", "stage")]


def _how_much(check: Check, node: Node, path: Path) -> str:
    """What is there of an unfinished version: prompts, rows, or the last checkpoint."""
    if node.artifact == "adapter":
        steps = [p.name.rpartition("-")[2] for p in path.glob("checkpoints/checkpoint-*")]
        last = max((int(step) for step in steps if step.isdecimal()), default=0)
        return f"a checkpoint after step {last}" if last else "no checkpoint yet"
    rows = _rows_in_parts(path)
    if node.artifact not in ("samples", "predictions"):
        return f"{rows:,} rows"
    per_prompt = check.config.sample.num_samples if node.artifact == "samples" else 1
    split = next(variant for artifact, variant in node.needs if artifact == "prompts")
    prompts = check.in_use(("prompts", split))
    of = f" of {prompts.manifest['rows']:,}" if prompts and "-image@" not in node.variant else ""
    return f"{rows // per_prompt + _prompts_in_journals(path):,}{of} prompts"


def _rows_in_parts(path: Path) -> int:
    import pyarrow.parquet as pq

    rows = 0
    for part in path.glob("part-*.parquet"):
        try:
            rows += int(pq.read_metadata(part).num_rows)
        except (OSError, ValueError):  # being written, or damaged
            continue
    return rows


def _prompts_in_journals(path: Path) -> int:
    """Prompts whose answers wait for their part to be whole (inference/journal.py)."""
    found: set[str] = set()
    for file in path.glob("unfinished-*.jsonl"):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines()[1:]:
            try:
                found.update(row["prompt_id"] for row in json.loads(line))
            except (ValueError, TypeError, KeyError):  # a line that a kill cut off
                continue
    return len(found)
