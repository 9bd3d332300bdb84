"""`perpo export`: the lists or the prompts of a finished run -> a folder for another tool.

The result is not an artifact: the user chooses its folder, which holds what that tool reads. It is
written beside its place and moved there at the end, so it is whole or absent.
"""

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from perpo_pipeline.errors import ArtifactError, ConfigError
from perpo_pipeline.export.card import Facts, dataset_card
from perpo_pipeline.export.chats import chats_with
from perpo_pipeline.export.images import ExportedImages
from perpo_pipeline.export.pairs import PAIRS
from perpo_pipeline.export.parts import Chosen, Reader
from perpo_pipeline.export.sampled import Sampled, sampled_as
from perpo_pipeline.export.targets import MARKS, TARGETS, Part, Target
from perpo_pipeline.json_files import Faults
from perpo_pipeline.run import Run
from perpo_pipeline.status.graph import ORDER
from perpo_pipeline.status.lineage import trace
from perpo_pipeline.store.artifacts import MANIFEST, Version
from perpo_pipeline.store.atomic import os_errors_explained, sync_directory
from perpo_pipeline.store.whole_folder import replacing
from perpo_pipeline.suggestions import did_you_mean

CARD = "README.md"
ROWS = {"pairs": "pairs", "best": "answers", "lists": "lists", "prompts": "prompts"}
FIXES = {
    "bad_image": "put these images back as they were, or run `perpo prepare` again",
    "bad_text": "export to trl or sft, whose images have no places in the texts (a model whose own "
    "mark of an image is <image> reads it there, too)",
}


@dataclass(frozen=True)
class Request:
    """What the command line asks for: the target, how pairs are chosen, and how images go along."""

    to: str
    pairs: str | None = None
    min_margin: float | None = None
    embed_images: bool = False

    @property
    def target(self) -> Target:
        return TARGETS[self.to]

    @property
    def chosen(self) -> Chosen:
        return Chosen(self.pairs or Chosen.pairs, self.min_margin or Chosen.min_margin)

    def check(self) -> None:
        """Raise `ConfigError` for an unknown target or rule, and for options without effect."""
        if self.to not in TARGETS:
            raise ConfigError(
                f"--to {self.to}: there is no such target{did_you_mean(self.to, TARGETS)}",
                fix=f"choose one of {', '.join(TARGETS)}",
            )
        if self.pairs == "m3po":
            raise ConfigError(
                "--pairs m3po: the pairs of M3PO are chosen by `perpo filter`, which also knows "
                "the model's confidence",
                fix="run perpo filter with --set filter.strategy=m3po, then export best-worst",
            )
        if self.pairs is not None and self.pairs not in PAIRS:
            raise ConfigError(
                f"--pairs {self.pairs}: there is no such rule{did_you_mean(self.pairs, PAIRS)}",
                fix=f"choose one of {', '.join(PAIRS)}",
            )
        if self.min_margin is not None and not 0 <= self.min_margin <= 1:
            raise ConfigError(
                f"--min-margin {self.min_margin:g}: rewards are from 0 to 1",
                fix="give a number from 0 to 1",
            )
        for name, value in {"pairs": self.pairs, "min-margin": self.min_margin}.items():
            if value is not None and self.target.needs != "pairs":
                of_pairs = [one for one, target in TARGETS.items() if target.needs == "pairs"]
                raise ConfigError(
                    f"--{name} changes nothing with --to {self.to}",
                    fix=f"leave it out, or export pairs: {', '.join(of_pairs)}",
                )


@dataclass
class _Counts:
    """What was written: rows, better answers that were cut, conversions of images by their kind,
    and images as paths."""

    rows: int = 0
    cut: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    outside: int = 0


def export(run: Run, split: str, out: Path, request: Request) -> Path:
    """Write the export of one split to `out`, whole or not at all, and return `out`.

    Raises `ConfigError` as `Request.check`, `ArtifactError` if `out` holds something, if the run
    has not what the target needs, and if no pair is left; `InputError` with all images that are
    missing or have changed, and all answers that the layout cannot hold.
    """
    request.check()
    with os_errors_explained(out, "it starts from the beginning"):
        _check_free(run, out)
    started = time.monotonic()
    source = run.latest("prompts" if request.target.needs == "prompts" else "preferences", split)
    lineage = trace([source])
    sampled = sampled_as(source, lineage, run.config.model)
    with (
        os_errors_explained(out, "it starts from the beginning"),
        replacing(out.resolve(), _settle) as folder,
    ):
        counts = _write(run, split, source, sampled, folder, request)
        name = f"{run.config.run}_{split}"
        if request.target.beside is not None:
            request.target.beside(folder, split, name)
        facts = Facts(run.config, split, name, request.to, request.chosen, **vars(counts))
        text = dataset_card(facts, sampled, lineage)
        (folder / CARD).write_text(text, encoding="utf-8")
    seconds = time.monotonic() - started
    what = ROWS[request.target.needs]
    of = f" of {source.manifest['rows']:,} lists" if what in ("pairs", "answers") else ""
    run.say(f"export {request.to}: {counts.rows:,} {what}{of} in {seconds:.1f} s ({out})")
    if counts.cut:
        run.say(
            f"warning: export {request.to}: {counts.cut:,} of the {counts.rows:,} better answers "
            "were cut at sample.max_new_tokens; a tool that puts an end token behind every answer "
            "teaches the model to stop there"
        )
    return out


def _check_free(run: Run, out: Path) -> None:
    place, data = out.resolve(), run.config.run_dir.resolve()
    is_version = any((above / MANIFEST).is_file() for above in place.parents)
    if is_version or any(place.is_relative_to(data / artifact) for artifact in ORDER):
        raise ArtifactError(
            "this path is among the artifacts of a run",
            where=str(out),
            fix="name another folder with --out, such as exports/NAME",
        )
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise ArtifactError(
            "this path already holds something",
            where=str(out),
            fix="name an empty or a new folder with --out, or remove this one",
        )


def _write(
    run: Run, split: str, source: Version, sampled: Sampled, folder: Path, request: Request
) -> _Counts:
    target, counts = request.target, _Counts()
    faults = Faults(source.path)
    images = ExportedImages(folder, request.embed_images, faults, counts.notes)
    reader = Reader(target.needs, request.chosen, images, sampled.chat.system_prompt)
    read = reader.prompts if target.needs == "prompts" else reader.lists
    with target.open(folder, split) as sink:
        for part in _with_bar(run, request, source, read(source)):
            for mark in target.marks:
                _check_texts(part, mark, faults)
            sink.write(pa.table(target.table(part)))
            counts.rows += len(part.of_prompt)
            counts.cut += part.cut
    counts.outside = images.outside
    reasons = dict.fromkeys(fault.reason for fault in faults.found)
    faults.fix = "; ".join(FIXES[reason] for reason in reasons) + "; nothing was written"
    faults.check()
    if not counts.rows:
        raise _nothing(source, request)
    return counts


def _with_bar(run: Run, request: Request, source: Version, parts: Iterable[Part]) -> Iterator[Part]:
    total = int(source.manifest["rows"])
    with run.bar(f"export {request.to}", total, unit=ROWS["prompts"]) as bar:
        for part in parts:
            yield part
            bar.update(part.prompts.num_rows)


def _check_texts(part: Part, mark: str, faults: Faults) -> None:
    """Record the texts that spell a mark, which the layout would read as a place."""
    place = f"holds {mark}, the place of {MARKS[mark]}"
    for asked in chats_with(part.turns, mark).tolist():
        faults.add(part.name_of(asked), f"the prompt {place}", "bad_text")
    for texts in part.answers.values():
        for row in pc.indices_nonzero(pc.match_substring(texts, mark)).to_pylist():
            faults.add(part.name_of(part.of_prompt[row]), f"an answer {place}", "bad_text")


def _nothing(source: Version, request: Request) -> ArtifactError:
    lists = int(source.manifest["rows"])
    if request.target.needs != "pairs" or not lists:
        return ArtifactError(
            f"there is nothing to export: the {source.artifact} have no rows",
            where=str(source.path),
            fix="lower filter.min_margin, or sample more prompts",
        )
    widest = max(source.table(columns=["margin"])["margin"].to_pylist())
    if widest <= 0:
        return ArtifactError(
            f"there is no pair: in all {lists:,} lists every completion has the same reward",
            where=str(source.path),
            fix="sample with a higher temperature, or choose another reward",
        )
    return ArtifactError(
        f"there is no pair with a margin of {request.chosen.min_margin:g} or more: the widest of "
        f"{lists:,} lists is {widest:.3g}",
        where=str(source.path),
        fix="lower --min-margin",
    )


def _settle(folder: Path) -> None:
    """Put all files on disk."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            sync_directory(path)
        else:
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
