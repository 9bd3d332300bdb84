"""Whether the artifacts of a run are what its configuration describes, through their lineage.

An artifact in use (`current`) is as the configuration says if its settings are, if it was made from
the artifacts that are in use now, and if these are in turn as the configuration says.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from perpo_pipeline import advice
from perpo_pipeline.config.fingerprints import stage_version
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.status.expected import differences, show
from perpo_pipeline.status.graph import Key, Node, nodes
from perpo_pipeline.status.model import model_difference, reference_difference
from perpo_pipeline.status.options import Options, options_of
from perpo_pipeline.status.sources import newer_files, other_files
from perpo_pipeline.store.artifacts import (
    CURRENT,
    MANIFEST,
    Json,
    Version,
    follow_current,
    open_version,
    read_manifest,
    require_parts,
)
from perpo_pipeline.store.finding import remembered
from perpo_pipeline.store.made_from import is_of, was_made_again
from perpo_pipeline.store.old_rules import RULES, Trust
from perpo_pipeline.vlm.files import IDENTITY_CACHE

Kind = Literal["setting", "input", "source", "stage", "missing", "given"]
SHOWN = 3


@dataclass(frozen=True)
class Reason:
    """Why an artifact is not what the configuration describes.

    `setting` is the dotted key of a setting; `need` is the input that is another one now.
    """

    node: Node
    kind: Kind
    text: str
    setting: str = ""
    need: Key | None = None

    @property
    def label(self) -> str:
        """The reason without its values."""
        return f"{self.node.name} {self.setting or self.kind}"

    def __str__(self) -> str:
        return f"{self.node.name}: {self.text}"


@dataclass(frozen=True)
class Accepted:
    """A reason that an option explains."""

    reason: Reason
    option: str

    def __str__(self) -> str:
        asked = "" if self.reason.kind == "given" else f"; {self.option} asked for it"
        return f"{self.reason}{asked}"


@dataclass(frozen=True)
class InUse:
    """The version of a node that is in use, and how it differs from the configuration itself."""

    path: Path
    manifest: Json
    options: Options
    reasons: Sequence[Reason]


@dataclass
class Found:
    """What a check found: differences that nothing explains, and those that an option explains."""

    silent: dict[str, Reason] = field(default_factory=dict)
    accepted: dict[str, Accepted] = field(default_factory=dict)


class Check:
    """Compares the artifacts in use with one configuration; reads each manifest once."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.nodes = {node.key: node for node in nodes(config)}
        self._in_use: dict[Key, InUse | None] = {}

    def place(self, key: Key) -> Path:
        """The folder of a node in the run's folder."""
        return self.config.run_dir / key[0] / key[1]

    def in_use(self, key: Key) -> InUse | None:
        """The version of a node that is in use; None if the run has none. Raises ArtifactError."""
        if key not in self._in_use:
            self._in_use[key] = self._read(key)
        return self._in_use[key]

    def forget(self, key: Key) -> None:
        """Treat a node that cannot be read as one that the run does not have."""
        self._in_use[key] = None

    def find(self, wanted: Iterable[Key]) -> Found:
        """The differences in the lineage of these nodes; none for nodes that the run does not name.

        Raises `ArtifactError` for a manifest that cannot be read.
        """
        found = Found()
        seen: set[tuple[Key, tuple[int, ...]]] = set()
        for key in wanted:
            self._visit(key, (), found, seen)
        order = list(self.nodes)
        silent = sorted(found.silent.items(), key=lambda item: order.index(item[1].node.key))
        accepted = {k: v for k, v in found.accepted.items() if k not in found.silent}
        return Found(dict(silent), accepted)

    def _visit(
        self,
        key: Key,
        above: tuple[Options, ...],
        found: Found,
        seen: set[tuple[Key, tuple[int, ...]]],
    ) -> None:
        """Check a node and what it needs; `above` are the options of what was made from it."""
        mark = (key, tuple(map(id, above)))
        used = self.in_use(key) if key in self.nodes else None
        if used is None or mark in seen:
            return
        seen.add(mark)
        chain = (used.options, *above) if used.options != Options() else above
        explained: set[Key] = set()
        further: list[Key] = []  # what an older input was made from, too
        for reason in used.reasons:
            option = self._explanation(reason, used, chain)
            if option is None:
                found.silent[reason.label] = reason
            else:
                found.accepted[reason.label] = Accepted(reason, option)
                explained |= {reason.need} if reason.need else set()
                if reason.kind == "input" and reason.need:
                    further += self.nodes[reason.need].needs
        own = [need for need in self.nodes[key].needs if need not in explained]
        for need in (*own, *further):
            self._visit(need, chain, found, seen)

    def _explanation(self, reason: Reason, used: InUse, chain: Sequence[Options]) -> str | None:
        """The option that asked for a difference; None if nobody did."""
        if reason.kind in ("setting", "source") and reason.setting:
            variant = reason.node.variant
            options = (one.setting(reason.setting, reason.label, variant) for one in chain)
            return next((option for option in options if option), None)
        if reason.kind == "given":
            return used.options.inputs[reason.setting]
        if reason.kind == "input" and reason.need:
            return self._why_other_input(reason, used, chain)
        return None

    def _why_other_input(self, reason: Reason, used: InUse, chain: Sequence[Options]) -> str | None:
        """The option that asked for an input with other settings than the run's now.

        All that differs in that input must be asked for, back to the data.
        """
        record = _record_of(used.manifest, reason.need or ("", ""))
        chain = [one for one in chain if reason.label not in one.stale]
        if record is None or reason.need is None:
            return None
        try:
            other = self._of_version(reason.need, used.path / record["path"])
        except ArtifactError:
            return None
        chain = [other.options, *chain]
        counted = [one for one in other.reasons if one.kind != "missing"]
        options = [self._explanation(one, other, chain) for one in counted]
        return options[0] if options and all(options) else None

    def _read(self, key: Key) -> InUse | None:
        place = self.place(key)
        if not (place / CURRENT).is_file():
            return None
        if not ((path := follow_current(place)) / MANIFEST).is_file():
            raise ArtifactError(
                "the version that `current` names has no manifest",
                where=str(path),
                fix=f"remove {place / CURRENT}, then run: {advice.command(*self.nodes[key].words)}",
            )
        return self._of_version(key, path)

    def _of_version(self, key: Key, path: Path) -> InUse:
        """One version of a node, which need not be the one in use."""
        version = open_version(path)
        manifest = version.manifest
        if (manifest["artifact"], manifest.get("variant")) != key:
            raise ArtifactError(
                f"this is a '{manifest['artifact']}' artifact {manifest.get('variant')}, in the "
                f"place of {key[0]}/{key[1]}",
                where=str(path),
                fix=f"remove {self.place(key) / CURRENT}, then run: "
                + advice.command(*self.nodes[key].words),
            )
        require_parts(version)
        options = options_of(path, manifest)
        node = self.nodes[key]
        reasons = own_reasons(node, path, manifest, self.config)
        return InUse(
            path, manifest, options, [*reasons, *self.inputs(node, path, manifest, options)]
        )

    def inputs(self, node: Node, path: Path, manifest: Json, options: Options) -> list[Reason]:
        """Inputs that are not those in use now, and those that an option gave."""
        found = [
            Reason(node, "given", f"made from {given}", artifact, self._need(node, artifact))
            for artifact, given in options.inputs.items()
        ]
        for need in node.needs:
            if need[0] not in options.inputs and (
                reason := self._input(node, need, path, manifest)
            ):
                found.append(reason)
        found += self._earlier(node, manifest)
        needed = {artifact for artifact, _ in node.needs} | set(options.inputs)
        if (
            node.artifact == "samples"
            and "adapter" not in needed
            and "adapter" in manifest["inputs"]
        ):
            found.append(Reason(node, "input", "drawn with an adapter, the run's are not"))
        return found

    def _earlier(self, node: Node, manifest: Json) -> list[Reason]:
        """The lists of `filter.earlier`, if they were made again; their recipe is a setting."""
        record, place = manifest["inputs"].get("earlier"), self.config.filter.earlier
        if record is None or place is None:
            return []
        try:
            again = was_made_again(record, open_version(place))
        except ArtifactError:
            return []
        text = "made from earlier lists as they were before they were made again"
        return [Reason(node, "input", text)] if again else []

    def _need(self, node: Node, artifact: str) -> Key | None:
        return next((need for need in node.needs if need[0] == artifact), None)

    def _input(self, node: Node, need: Key, path: Path, manifest: Json) -> Reason | None:
        record = _record_of(manifest, need)
        place = self.place(need)
        if not (place / CURRENT).is_file():
            text = f"{need[0]}/{need[1]} is missing"
            return Reason(node, "missing", text, f"{need[0]}/{need[1]}", need)
        is_other = node.artifact == "report"  # its settings name what it shows: a difference there
        if record is None and (is_other or need[0] not in _artifacts(manifest)):
            return None
        try:
            now = open_version(place)
        except ArtifactError:
            text = f"{need[0]}/{need[1]} is broken"
            return Reason(node, "missing", text, f"{need[0]}/{need[1]}", need)
        if record is not None and is_of(record, now):
            return None
        if record is not None and was_made_again(record, now):
            text = f"made from {need[0]}/{need[1]} as it was before it was made again"
            return Reason(node, "input", text, f"{need[0]}/{need[1]}", need)
        other = "another adapter" if need[0] == "adapter" else f"other {need[0]}"
        text = f"made from {other} than the run's now{_how_other(path, record, now)}"
        return Reason(node, "input", text, f"{need[0]}/{need[1]}", need)


def own_reasons(node: Node, path: Path, manifest: Json, config: RunConfig) -> list[Reason]:
    """How an artifact differs by itself: settings, the model, its sources, its stage's version."""
    cache = config.run_dir / IDENTITY_CACHE
    found = differences(node.key, manifest, config)
    if node.artifact != "report" and (other := model_difference(manifest, config.model, cache)):
        found.append(other)
    if other := reference_difference(node.key, manifest, config, cache):
        found.append(other)
    reasons = [Reason(node, "setting", f"made with {one}", one.key) for one in found]
    if node.artifact == "prompts":
        newer = newer_files(config, node.variant, path.parent / CURRENT, manifest)
        names = ", ".join(str(file) for file in newer[:SHOWN])
        more = f" and {len(newer) - SHOWN} more" if len(newer) > SHOWN else ""
        if newer:
            verb = "were" if len(newer) > 1 else "was"
            reasons.append(Reason(node, "source", f"{names}{more} {verb} written later"))
        elif others := other_files(config, node.variant, path.parent / CURRENT, manifest):
            names = ", ".join(map(str, others[:SHOWN]))
            text = f"read from other data than {names} has now"
            reasons.append(Reason(node, "source", text, f"prepare.{node.variant}.path"))
    if made := _made_by_another_stage(node, path, manifest):
        reasons.append(Reason(node, "stage", made))
    return reasons


def _made_by_another_stage(node: Node, path: Path, manifest: Json) -> str | None:
    """What another version of the stage made, unless today's is known to make the same of it."""
    stage, version = manifest["stage"], manifest.get("stage_version")
    today = stage_version(node.artifact, stage, manifest["settings"])
    rule = RULES.get((node.artifact, stage))
    trust = rule.stages.get(version) if rule and version is not None else None
    is_same = trust is Trust.SAME or path.name in remembered(path.parent).values()
    if version in (None, today) or is_same:
        return None
    again = ", which finds it again if its content is the same" if trust else ""
    return f"made by version {version} of `perpo {stage}`, today's is {today}{again}"


def _artifacts(manifest: Json) -> set[str]:
    """The artifacts that a version was made from."""
    return {record["artifact"] for record in manifest["inputs"].values()}


def _record_of(manifest: Json, need: Key) -> Json | None:
    """How a manifest records an input."""
    records = manifest["inputs"].values()
    return next((r for r in records if (r["artifact"], r["variant"]) == need), None)


def _how_other(path: Path, record: Json | None, now: Version) -> str:
    """The settings in which an input differs from the one that is in use, if these differ."""
    try:
        old = read_manifest(path / (record or {})["path"])["settings"]
    except (ArtifactError, KeyError):
        return ""
    new = now.manifest["settings"]
    names = [name for name in old if name in new and old[name] != new[name]]
    shown = [f"{name} {show(old[name])}, now {show(new[name])}" for name in names[:SHOWN]]
    return f" ({'; '.join(shown)})" if shown else ""
