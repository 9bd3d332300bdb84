"""`perpo measure`: completions made elsewhere -> predictions and metrics, no model.

The layouts of the files: prediction_files.py, for POPE pope.py. `image_prompt_id` of these
predictions is a key of the image that a row names, else the row's own.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from perpo_pipeline.answers.formats import describe_box_format, frame_fault, get_box_format
from perpo_pipeline.answers.frames import FRAMES, Size
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.evaluate import pope
from perpo_pipeline.evaluate.metrics import measured_metrics, missing_metrics, tasks_of
from perpo_pipeline.evaluate.prediction_files import (
    KEYS,
    question_key,
    read_predictions,
)
from perpo_pipeline.evaluate.summarise import summarise
from perpo_pipeline.rewards.scoring import TRUTH_COLUMNS, reading_doubt, score_samples
from perpo_pipeline.run import Console, make_at
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.schemas import PREDICTIONS, PROMPTS
from perpo_pipeline.store.writing import Recipe, Writer

STAGE_VERSION = 1
TASKS = (*KEYS, pope.TASK)
REWARD = "auto"

Row = dict[str, Any]


def evaluate_file(
    task: str,
    predictions: Path,
    *,
    out: Path,
    box_format: str | None = None,
    frame: str | None = None,
    fox_compat: bool = False,
    console: Console | None = None,
) -> Version:
    """Measure a file of completions: predictions and metrics under `out`; returns the metrics.

    `task` is grounding, ocr or vqa. Grounding needs `box_format` and `frame`, one of
    `frames.FRAMES` or `resized:WxH` (one size for all rows); `fox_compat` is of ocr. Raises
    ConfigError for options that do not fit, InputError for bad rows, before anything is written.
    """
    console = console or Console()
    _check_options(task, box_format, frame, fox_compat)
    box_frame, one_size = parse_frame(frame) if frame else ("full", None)
    if box_format and (fault := frame_fault(box_format, box_frame)):
        raise ConfigError(fault, fix="give --frame resized:WxH, or `resized` on every line")
    file = read_predictions(
        predictions, task, needs_resized=box_frame == "resized" and one_size is None
    )
    rows = [row | {"resized": one_size or row["resized"]} for row in file.rows]
    settings: Row = {"task": task, "reward": {REWARD: 1.0}, "file_sha256": _sha256(predictions)}
    if box_format is not None:
        settings |= {"box_format": describe_box_format(box_format), "frame": frame}
    truth = _prompts(rows)
    measured = [metric.name for metric in measured_metrics(tasks_of(truth))]
    for message in missing_metrics({task}).values():
        console.say(f"eval {predictions.stem}: {message}")
    _tell_mended(console, predictions, file.mended)
    return _make_both(
        Recipe("predictions", _variant(predictions), "eval", STAGE_VERSION, settings),
        lambda: _answers(rows, truth, box_format or "llava", box_frame),
        {"fox_compat": fox_compat, "metrics": measured},
        lambda made: summarise(made, truth, fox_compat=fox_compat),
        {"mended_completions": file.mended},
        out,
        console,
    )


def evaluate_pope(
    answers: Path, *, questions: Path, labels: Path, out: Path, console: Console | None = None
) -> Version:
    """Measure answers to POPE's questions; as `evaluate_file`, with a reward of 1 for a right one.

    Raises InputError where the three files do not fit together.
    """
    console = console or Console()
    rows = pope.read_pope(answers, questions, labels)
    files = {"answers": answers, "questions": questions, "labels": labels}
    settings = {"task": pope.TASK, "file_sha256": {k: _sha256(v) for k, v in files.items()}}
    mended = sum(row["mended"] for row in rows)
    _tell_mended(console, answers, mended)
    given = [
        _answer(row, row["image"]) | {"reward": float(row["says_yes"] == row["is_yes"])}
        for row in rows
    ]
    return _make_both(
        Recipe("predictions", _variant(answers), "eval", STAGE_VERSION, settings),
        lambda: given,
        {},
        lambda _: pope.pope_metrics(rows),
        {"mended_completions": mended},
        out,
        console,
    )


def _variant(path: Path) -> str:
    """The file's name, in characters that a manifest can hold."""
    return path.stem.encode("utf-8", "replace").decode()


def parse_frame(text: str) -> tuple[str, Size | None]:
    """(frame, None) of one of `frames.FRAMES`, (`resized`, size in px) of `resized:WxH`.

    Raises ConfigError for anything else.
    """
    if text in FRAMES:
        return text, None
    match = re.fullmatch(r"resized:([1-9][0-9]{0,6})x([1-9][0-9]{0,6})", text)
    if match is None:
        raise ConfigError(
            f"there is no frame {text!r}", fix=f"one of {', '.join(FRAMES)}, or resized:WxH"
        )
    return "resized", (int(match[1]), int(match[2]))


def _check_options(task: str, box_format: str | None, frame: str | None, fox_compat: bool) -> None:
    if task not in KEYS:
        raise ConfigError(
            f"there is no task {task!r} for such files",
            fix=f"one of {', '.join(KEYS)}; for POPE: perpo measure pope",
        )
    if task != "grounding" and (box_format or frame):
        raise ConfigError(f"a box format and a frame are of grounding, not of {task}")
    if task == "grounding" and not (box_format and frame):
        raise ConfigError(
            "grounding needs to know how its boxes are written and in which frame",
            fix="give --box-format and --frame (README, 'Boxes'); neither is ever guessed",
        )
    if fox_compat and task != "ocr":
        raise ConfigError(f"Fox's order of the texts is of ocr, not of {task}")
    if box_format:
        get_box_format(box_format)


def _make_both(
    recipe: Recipe,
    answers: Callable[[], list[Row]],
    metric_settings: Row,
    measure: Callable[[pa.Table], Sequence[Row]],
    counts: Mapping[str, int],
    out: Path,
    console: Console,
) -> Version:
    def write_answers(writer: Writer) -> Mapping[str, Any]:
        rows = answers()
        unread = [row["completion"] for row in rows if not row["parse_ok"]]
        if doubt := reading_doubt(len(unread), len(rows)):
            console.say(f"eval {recipe.variant}: {doubt} For instance {unread[0][:80]!r}")
        writer.write_part(0, rows)
        return counts

    def write_metrics(writer: Writer) -> None:
        writer.write_part(0, list(measure(made.table())))

    made = make_at(out / "predictions", recipe, write_answers, console)
    inputs = {"predictions": made}
    of_metrics = Recipe("metrics", recipe.variant, "eval", STAGE_VERSION, metric_settings, inputs)
    return make_at(out / "metrics", of_metrics, write_metrics, console)


def _prompts(rows: Sequence[Row]) -> pa.Table:
    """The rows' truth under the columns of PROMPTS; images are known by their names alone."""
    wanted = dict.fromkeys([*TRUTH_COLUMNS, *PROMPTS.pick("dataset", "split", "image_sha256")])
    fields = [PROMPTS.columns.field(name).with_nullable(True) for name in wanted]
    known = [row | {"image_sha256": _image_id(row, row["image_key"])} for row in rows]
    return pa.Table.from_pylist(known, schema=pa.schema(fields))


def _answers(rows: Sequence[Row], truth: pa.Table, box_format: str, box_frame: str) -> list[Row]:
    given = [_answer(row, row["image_key"]) for row in rows]
    columns = ("prompt_id", "completion", "resized")
    fields = [PREDICTIONS.columns.field(name) for name in columns]
    samples = pa.Table.from_pylist(given, schema=pa.schema(fields)).append_column(
        "sample_id", pa.array([0] * len(rows), pa.int32())
    )
    scored = score_samples(
        samples, truth, reward=REWARD, box_format=box_format, box_frame=box_frame
    ).to_pylist()
    measured = ("reward", "parse_ok", "box")
    return [row | {k: found[k] for k in measured} for row, found in zip(given, scored, strict=True)]


def _answer(row: Row, image: str | None) -> Row:
    """A PREDICTIONS row but for its reward; nothing is known of how it was made."""
    return {
        "prompt_id": row["prompt_id"],
        "image_prompt_id": _image_id(row, image),
        "completion": row["completion"],
        "completion_token_ids": [],
        "finish_reason": "unknown",
        "resized": row.get("resized"),
        "parse_ok": True,
        "box": None,
    }


def _image_id(row: Row, image: str | None) -> str:
    return str(row["prompt_id"]) if image is None else question_key("image", image)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _tell_mended(console: Console, path: Path, mended: int) -> None:
    if mended:
        console.say(
            f"eval {path.stem}: {mended} completions hold halves of characters (lone surrogates), "
            "each written as U+FFFD"
        )
