"""What all stages share: where a run's artifacts are, and "do nothing if it is complete"."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from perpo_pipeline import advice, bars
from perpo_pipeline.bars import Bar
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.errors import ArtifactError, Stopped
from perpo_pipeline.interrupts import signal_of
from perpo_pipeline.status.check import Check
from perpo_pipeline.status.graph import DEFAULT as DEFAULT
from perpo_pipeline.status.graph import Key
from perpo_pipeline.status.options import Options
from perpo_pipeline.status.refusal import as_given, refuse_stale
from perpo_pipeline.store.artifacts import CURRENT, Version, open_version
from perpo_pipeline.store.finding import how_old, left_behind, reuse_complete, use_equal_older
from perpo_pipeline.store.writing import Recipe, Writer, open_writer

Item = TypeVar("Item")


class NotMade(Exception):
    """A run that may only find versions needs one that is not finished."""


@dataclass
class Pinned:
    """The versions that one cell of a sweep reads and makes, by artifact and variant.

    With `only_find` nothing is made: `make` raises NotMade for a version that is not finished.
    """

    versions: dict[Key, Version] = field(default_factory=dict)
    only_find: bool = False


class Console:
    """Prints messages and progress bars to stderr; stdout is for results only."""

    quiet: bool

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet

    def say(self, message: str) -> None:
        """Print a message to stderr, above a bar."""
        bars.write(message)

    def progress(
        self, items: Iterable[Item], what: str, total: int | None = None, unit: str = "items"
    ) -> Iterator[Item]:
        """Iterate with a progress bar, or a line per minute in a log, unless --quiet."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        with self.bar(what, total, unit=unit) as bar:
            for item in items:
                yield item
                bar.update()

    def bar(
        self,
        what: str,
        total: int | None = None,
        *,
        initial: int = 0,
        unit: str = "items",
        wave: int = 1,
        doing: str = "",
    ) -> Bar:
        """A bar that the caller updates (`bars.Bar`); `initial` items were done before."""
        return Bar(
            what, total, initial=initial, unit=unit, wave=wave, doing=doing, quiet=self.quiet
        )


@dataclass(frozen=True)
class Run(Console):
    """A loaded run: its configuration, and what the command line gave.

    `inputs` are the places that options gave for artifacts, `options` all that is recorded of the
    command line. With `allow_stale` inputs are taken that the configuration does not describe.
    With `pinned` the run reads the versions that are pinned and no others, pins what it makes, and
    neither reads nor changes which versions are in use.
    """

    config: RunConfig
    out: Path | None = None
    inputs: Mapping[str, Path] = field(default_factory=dict)
    quiet: bool = False
    muted: bool = False  # one of several processes: only the first prints
    options: Options = field(default_factory=Options)
    allow_stale: bool = False
    pinned: Pinned | None = None
    _said: set[str] = field(default_factory=set, compare=False, repr=False)
    _stale: dict[str, str] = field(default_factory=dict, compare=False, repr=False)
    _checked: dict[Key, Path] = field(default_factory=dict, compare=False, repr=False)

    def say(self, message: str) -> None:
        """Print a message to stderr, unless another process prints it."""
        if not self.muted:
            super().say(message)

    def place(self, artifact: str, variant: str = DEFAULT) -> Path:
        """The directory of an artifact's variant in this run."""
        return self.config.run_dir / artifact / variant

    @property
    def scratch(self) -> Path:
        """The directory for other files than artifacts: --out, or else the run's directory."""
        return self.out or self.config.run_dir

    def latest(self, artifact: str, variant: str = DEFAULT) -> Version:
        """The version in use, or the version that an option such as --prompts gave.

        Raises `ArtifactError` if the run has none, naming the command that makes it, and if the
        configuration no longer describes it or something that it was made from.
        """
        return self.all_latest([(artifact, variant)])[0]

    def all_latest(self, wanted: Sequence[Key]) -> list[Version]:
        """As `latest`, for several: one error names all that the configuration does not describe.

        What an option explains is printed, once. With `allow_stale` the rest is printed, too.
        """
        if self.pinned is not None:
            return [self.pinned.versions[key] for key in wanted]
        versions = [self._open(artifact, variant) for artifact, variant in wanted]
        new = {
            key: version.path
            for key, version in zip(wanted, versions, strict=True)
            if key[0] not in self.inputs and self._checked.get(key) != version.path
        }
        found = Check(self.config).find(new)
        for accepted in found.accepted.values():
            self._say_once(f"takes {accepted}")
        stale = [reason for reason in found.silent.values() if reason.kind != "missing"]
        if stale and not self.allow_stale:
            raise refuse_stale(self.config, stale)
        for reason in stale:
            self._say_once(f"--allow-stale: {reason}")
            self._stale[reason.label] = reason.text
        self._checked.update(new)
        return versions

    def _open(self, artifact: str, variant: str) -> Version:
        given, place = self.inputs.get(artifact), self.place(artifact, variant)
        if given is not None:
            version = open_version(given, artifact)
            self._say_once(as_given(self.config, version, given))
            return version
        if not (place / CURRENT).is_file():
            raise ArtifactError(
                f"the run '{self.config.run}' has no finished {artifact} '{variant}' yet",
                where=str(place),
                fix=f"run: {advice.remake(artifact, variant)}",
            )
        return open_version(place, artifact)

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            self.say(message)

    def with_options(self, recipe: Recipe) -> Recipe:
        """The recipe with what is recorded of the command line."""
        options = replace(self.options, stale=self._stale).as_json()
        return replace(recipe, options=options, aside=self.pinned is not None)


def make(
    run: Run,
    recipe: Recipe,
    work: Callable[[Writer], Mapping[str, Any] | None],
    *,
    out: Path | None = None,
    confirm: Callable[[Version], bool] | None = None,
) -> Version:
    """As `make_at`, under `out` or else where the run keeps the artifact; pins the version if the
    run has pinned ones. Raises NotMade if it may only find them."""
    place = out or run.place(recipe.artifact, recipe.variant)
    given, pinned = run.with_options(recipe), run.pinned
    if pinned is None:
        return make_at(place, given, work, run, confirm)
    if (version := reuse_complete(place, given, confirm)) is None:
        if pinned.only_find:
            raise NotMade(f"{recipe.artifact}/{recipe.variant}")
        version = make_at(place, given, work, run, confirm)
    pinned.versions[recipe.artifact, recipe.variant] = version
    return version


def _say_found(console: Console, recipe: Recipe, found: Version) -> None:
    """Print that there is nothing to do, and which rule made the version."""
    age = how_old(found, recipe)
    console.say(
        f"{recipe.stage} {recipe.variant}: up to date ({found.path}{', ' if age else ''}{age})"
    )


def make_at(
    root: Path,
    recipe: Recipe,
    work: Callable[[Writer], Mapping[str, Any] | None],
    console: Console,
    confirm: Callable[[Version], bool] | None = None,
) -> Version:
    """Return the version of `recipe` under `root`, from disk if it is complete.

    Otherwise `work` makes it: it writes the parts and returns the counts for the manifest. A
    version that an older rule made is found where its content is the same (store/finding.py).
    """
    if (done := reuse_complete(root, recipe, confirm)) is not None:
        _say_found(console, recipe, done)
        return done
    for path in left_behind(root, recipe):
        console.say(
            f"{recipe.stage} {recipe.variant}: an older rule began a version that cannot be "
            f"resumed; it is left behind: {path} (perpo gc removes it)"
        )
    with open_writer(root, recipe) as writer:
        try:
            counts = work(writer)
        except KeyboardInterrupt as interrupt:
            raise _stopped(writer, interrupt) from None
        equal = use_equal_older(writer)
        version = writer.finish(dict(counts or {})) if equal is None else equal
    if equal is not None:
        shutil.rmtree(writer.path)
        _say_found(console, recipe, equal)
        return equal
    console.say(
        f"{recipe.stage} {recipe.variant}: {recipe.artifact}, {version.manifest['rows']} rows in "
        f"{version.manifest['wall_s']:.1f} s ({version.path})"
    )
    return version


def _stopped(writer: Writer, interrupt: KeyboardInterrupt) -> Stopped:
    """What is kept of a version that is written part by part."""
    rows, recipe = writer.num_rows(), writer.recipe
    kept = (
        f"{rows:,} finished rows are kept, the same command goes on from there"
        if rows
        else "the same command begins this artifact again"
    )
    return Stopped(f"{recipe.stage} {recipe.variant} interrupted; {kept}", signal_of(interrupt))
