"""The run of an acceptance: its stages, in order, and what is said after each.

All stages are those of `perpo`, so that an acceptance that was stopped goes on where it was.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perpo_pipeline.commands.options import open_run
from perpo_pipeline.config.sources import ReferSource
from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.store.artifacts import input_of
from perpo_pipeline.suggestions import did_you_mean
from tools.acceptance.published import Published, find_published

if TYPE_CHECKING:
    from perpo_pipeline.run import Run

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "acceptance"
TEST, HELD_OUT, METHOD = "test", "heldout", "perpo"
FEWEST_LISTS = 100
COUNTED_IMAGES = 4  # images whose tokens are counted


class Rejected(Exception):
    """A part of the acceptance failed; the message says which, with figures and causes."""


@dataclass(frozen=True)
class Acceptance:
    """The acceptance of a model: a file of configs/acceptance, and settings of the command line."""

    name: str
    sets: Sequence[str]

    @property
    def config(self) -> Path:
        return CONFIGS / f"{self.name}.yaml"

    def open(self) -> "Run":
        """The run, as the artifacts are now."""
        return open_run(self.config, list(self.sets))

    def stage(self, *arguments: str) -> None:
        """Run `perpo` with these arguments; raises SystemExit with its code where it fails."""
        typed = [*arguments, "--config", str(self.config)]
        typed += [word for setting in self.sets for word in ("--set", setting)]
        done = subprocess.run(
            [sys.executable, "-m", "perpo_pipeline.cli", *typed], stdout=subprocess.DEVNULL
        )
        if done.returncode:
            raise SystemExit(done.returncode)


def find_acceptance(name: str, data: Path | None, sets: Sequence[str]) -> Acceptance:
    """The acceptance of that name, with its data in the folder `data` (refer/, coco/train2014/).

    Raises ConfigError for an unknown name.
    """
    names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    if name not in names:
        raise ConfigError(
            f"there is no acceptance of {name!r}{did_you_mean(name, names)}",
            fix=f"choose MODEL= from: {', '.join(names)}",
        )
    found = Acceptance(name, sets)
    if data is None:
        return found
    sources = found.open().config.prepare
    if any(source.source != "refer" for source in sources.values()):
        raise ConfigError(f"{name} needs no data", fix="leave DATA out")
    places = {"path": data / "refer", "image_root": data / "coco" / "train2014"}
    moved = [
        f"prepare.{split}.{key}={place.absolute()}"
        for split in sources
        for key, place in places.items()
    ]
    return Acceptance(name, [*moved, *sets])


def accept(acceptance: Acceptance) -> Iterator[str]:
    """Yield the result of each part as it passes; raises Rejected at the first that fails."""
    run = acceptance.open()
    published = find_published(run.config.model.id)
    check_data(run)
    yield planned_time(run)
    acceptance.stage("run", "--from", "prepare", "--to", "prepare")
    yield check_tokens(acceptance.open(), published)
    acceptance.stage("eval", "--evaluation", f"base@{TEST}")
    yield check_answers(acceptance.open(), published)
    acceptance.stage("run", "--from", "sample", "--to", "filter")
    yield check_lists(acceptance.open())
    acceptance.stage("run", "--from", "train", "--to", "eval")
    yield check_training(acceptance.open())


def check_data(run: "Run") -> None:
    """Raise InputError for a folder of data that is not there, before anything is planned."""
    sources = [one for one in run.config.prepare.values() if isinstance(one, ReferSource)]
    for source in sources:
        for folder in (source.path, source.image_root):
            if not folder.is_dir():
                raise InputError(
                    "no such folder",
                    where=str(folder),
                    fix="give DATA=FOLDER, with refer/refcoco and coco/train2014 in it "
                    "(docs/data.md says where they come from)",
                )


def planned_time(run: "Run") -> str:
    """How long the whole run takes, as `perpo plan` says."""
    from perpo_pipeline.planning.page import between
    from perpo_pipeline.planning.plan import make_plan

    plan = make_plan(run)
    time = "unknown" if plan.total is None else between(*plan.total)
    return f"time: {time} on {plan.hardware}, if nothing is there yet (perpo plan has the parts)"


def check_tokens(run: "Run", published: Published) -> str:
    """Count the image tokens of a few prompts; raises Rejected if they are too many or too few."""
    from tools.acceptance.base import token_fault

    width, height = published.image
    prompts = run.latest("prompts", TEST).table()
    rows = [row for row in prompts.to_pylist() if (row["width"], row["height"]) == (width, height)]
    if not rows:
        return f"image tokens: not counted, no test image has {width}x{height} pixels"
    tokens = _count_image_tokens(run, rows[:COUNTED_IMAGES])
    if fault := token_fault(tokens, published):
        raise Rejected(f"image tokens: failed\n  likely cause: {fault}")
    return f"image tokens: passed, {tokens[0]:,} for {width}x{height} pixels"


def _count_image_tokens(run: "Run", rows: Sequence[dict[str, Any]]) -> list[int]:
    from perpo_pipeline.vlm.inputs import IDENTITY_CACHE, encode_row, find_model
    from perpo_pipeline.vlm.loading import load_without_weights

    resolved, settings = find_model(run.config.model, run.scratch)
    vlm = load_without_weights(resolved, identity_cache=run.scratch / IDENTITY_CACHE)
    encoded = [encode_row(vlm, row, settings["preprocess"]).input_ids.tolist() for row in rows]
    return [sum(map(ids.count, vlm.image_token_ids)) for ids in encoded]


def check_answers(run: "Run", published: Published) -> str:
    """Compare the base's answers with the published figure; raises Rejected with the causes."""
    from tools.acceptance.base import ANSWER_COLUMNS, check_base

    predictions = run.latest("predictions", f"base@{TEST}")
    found = check_base(
        predictions.table(columns=ANSWER_COLUMNS),
        input_of(predictions, "prompts").table(),
        run.config.model.reading(),
        published,
    )
    line = (
        f"AP@50 {100 * found.score.ap50:.1f} on {found.n:,} prompts, accepted "
        f"{100 * found.low:.1f} to {100 * found.high:.1f}, published {100 * published.ap50:.1f} "
        f"({published.of}; {published.source})"
    )
    if found.passed:
        return f"base: passed, {line}"
    causes = [f"likely cause: {found.causes[0]}", *(f"also: {one}" for one in found.causes[1:])]
    raise Rejected("\n  ".join([f"base: failed, {line}", *causes]))


def check_lists(run: "Run") -> str:
    """Count the lists to train on; raises Rejected if they are too few to show anything."""
    number = _number_of_lists(run)
    if number >= FEWEST_LISTS:
        return f"lists: passed, {number:,} have a wide enough margin"
    raise Rejected(
        f"lists: failed, {number:,} have a wide enough margin, at least {FEWEST_LISTS} are needed"
        "\n  likely cause: too few lists: more prompts (prepare.train.per_dataset) or a smaller "
        "filter.min_margin"
    )


def _number_of_lists(run: "Run") -> int:
    kept: int = run.latest("preferences", run.config.sample.split).manifest["counts"]["kept"]
    return kept


def check_training(run: "Run") -> str:
    """Compare PerPO with the base on held-out prompts; raises Rejected unless it is better."""
    from perpo_pipeline.evaluate.compare import compare_predictions

    better, worse = (run.latest("predictions", f"{model}@{HELD_OUT}") for model in (METHOD, "base"))
    rows = {row["metric"]: row for row in compare_predictions(better, worse)}
    reward, ap50 = rows["miou"], rows["ap50"]
    line = (
        f"mean reward {_points(reward)}, AP@50 {_points(ap50)} on {reward['n']:,} held-out "
        f"prompts, trained on {_number_of_lists(run):,} lists"
    )
    if reward["low"] > 0:
        return f"training: passed, {line}"
    if reward["high"] < 0:
        raise Rejected(
            f"training: failed, {line}\n  likely cause: a learning rate that is too high, or "
            "reference and policy that read prompts differently (train's self-check)"
        )
    raise Rejected(
        f"training: not shown, {line}\n  likely cause: the interval holds 0: a base that is "
        "nearly always right gains little, so more held-out prompts are needed "
        f"(prepare.{HELD_OUT}.per_dataset), or more lists"
    )


def _points(row: dict[str, Any]) -> str:
    difference, low, high = (100 * row[name] for name in ("difference", "low", "high"))
    return f"{difference:+.1f} points [{low:+.1f}, {high:+.1f}]"
