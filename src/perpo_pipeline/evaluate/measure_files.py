"""`perpo measure`: completions made elsewhere -> predictions and metrics, without a model.

prediction_files.py reads the files, pope.py those of POPE. `image_prompt_id` of these predictions
is a key made from the image that a row names, or else the row's own prompt_id.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from perpo_pipeline import advice
from perpo_pipeline.answers.formats import describe_box_format, frame_fault, get_box_format
from perpo_pipeline.answers.frames import FRAMES, Size
from perpo_pipeline.answers.settings import Reading
from perpo_pipeline.config.model import AnswerConfig
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.evaluate.metrics import POPE, measured_metrics, missing_metrics, tasks_of
from perpo_pipeline.evaluate.pope import pope_metrics, unread_note
from perpo_pipeline.evaluate.pope_files import ANY, read_pope
from perpo_pipeline.evaluate.prediction_files import (
    INDISTINCT,
    PredictionFile,
    question_key,
    read_predictions,
)
from perpo_pipeline.evaluate.summarise import doubts_of, summarise
from perpo_pipeline.rewards.normalise import named_forms
from perpo_pipeline.rewards.scoring import TRUTH_COLUMNS, score_samples
from perpo_pipeline.run import Console, make_at
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.atomic import file_sha256
from perpo_pipeline.store.schemas import PREDICTIONS, PROMPTS
from perpo_pipeline.store.writing import Recipe, Writer
from perpo_pipeline.suggestions import did_you_mean

STAGE = "measure"
STAGE_VERSION = 2
REWARD = "auto"
MIXED = "mixed"
"""The task of a file whose rows have several: `perpo compare` compares their mean reward."""
POPE_READING = 2  # goes up when answers to POPE are read otherwise
DEFAULT_ANSWER = AnswerConfig()

Row = dict[str, Any]


def measure_boxes(
    file: Path,
    *,
    out: Path,
    box_format: str | None,
    frame: str | None,
    answer: AnswerConfig = DEFAULT_ANSWER,
    console: Console | None = None,
) -> Version:
    """Measure boxes in a file of completions: predictions and metrics under `out`.

    `frame` is one of `frames.FRAMES`, or `resized:WxH` (one size for all rows); `answer` says how
    the text of an answer is found. Returns the metrics. Raises ConfigError for a format or frame
    that is missing or unknown, InputError for bad rows, before anything is written.
    """
    if not (box_format and frame):
        raise ConfigError(
            "grounding needs to know how its boxes are written and in which frame",
            fix=f"give --box-format and --frame ({advice.page('boxes')}); neither is ever guessed",
        )
    get_box_format(box_format)
    box_frame, size = parse_frame(frame)
    if fault := frame_fault(box_format, box_frame):
        raise ConfigError(fault, fix="give --frame resized:WxH, or `resized` on every line")
    needs_resized = box_frame == "resized" and size is None
    found = read_predictions(file, "grounding", needs_resized=needs_resized)
    rows = [row | {"resized": size or row["resized"]} for row in found.rows]
    reading = Reading(box_format, box_frame, **answer.model_dump())
    settings = {"box_format": describe_box_format(box_format), "frame": frame}
    found = replace(found, rows=rows)
    return _measure("grounding", file, found, out, console, reading, settings=settings)


def measure_pages(
    file: Path,
    *,
    out: Path,
    normalise: Sequence[str] = (),
    fox_compat: bool = False,
    answer: AnswerConfig = DEFAULT_ANSWER,
    console: Console | None = None,
) -> Version:
    """Measure pages of text in a file of completions: predictions and metrics under `out`.

    `normalise` names the normal forms of both texts; `fox_compat`: see `ocr.fox_metrics`; `answer`
    says how the text of an answer is found. Returns the metrics; raises InputError for bad rows.
    """
    found, reading = read_predictions(file, "ocr"), Reading(**answer.model_dump())
    return _measure(
        "ocr", file, found, out, console, reading, normalise=normalise, fox_compat=fox_compat
    )


def measure_answers(
    file: Path,
    *,
    out: Path,
    normalise: Sequence[str] = (),
    answer: AnswerConfig = DEFAULT_ANSWER,
    console: Console | None = None,
) -> Version:
    """Measure short answers in a file of completions: predictions and metrics under `out`.

    `normalise` names the normal forms of both texts, `answer` says how the text of an answer is
    found. Returns the metrics; raises InputError for bad rows.
    """
    found, reading = read_predictions(file, "vqa"), Reading(**answer.model_dump())
    return _measure("vqa", file, found, out, console, reading, normalise=normalise)


def measure_pope(
    answers: Path,
    *,
    questions: Path | None,
    labels: Path | Mapping[str, Path],
    out: Path,
    answer: AnswerConfig = DEFAULT_ANSWER,
    console: Console | None = None,
) -> Version:
    """Measure answers to POPE's questions: predictions (reward 1 if right, else 0) and metrics.

    `labels` is one file, or one for each category to measure; without `questions` it holds them as
    well. `answer` says how the text of an answer is found. Returns the metrics; raises InputError
    if the files do not fit together.
    """
    console = console or Console()
    labels = {ANY: labels} if isinstance(labels, Path) else labels
    reading = Reading(**answer.model_dump())
    found = read_pope(answers, questions, labels, reading)
    rows, variant = found.rows, _variant(answers)
    settings = {
        "task": POPE,
        "reading": POPE_READING,
        **reading.text_settings(),
        "file_sha256": _pope_sha256(answers, questions, labels),
    }
    mended = sum(row["mended"] for row in rows)
    _print_mended(console, answers, mended)
    if found.other_categories:
        console.say(
            f"{STAGE} {variant}: {found.other_categories} questions of other categories are not "
            "measured"
        )
    if note := unread_note(rows):
        console.say(f"{STAGE} {variant}: {note}")
    given = [
        _answer(row, row["image"])
        | {
            "reward": float(row["is_answered"] and row["says_yes"] == row["is_yes"]),
            "parse_ok": row["is_answered"],
        }
        for row in rows
    ]
    return _make_both(
        Recipe("predictions", variant, STAGE, STAGE_VERSION, settings),
        lambda: given,
        {},
        lambda _: pope_metrics(rows),
        {"mended_completions": mended, "other_categories": found.other_categories},
        out,
        console,
    )


def parse_frame(text: str) -> tuple[str, Size | None]:
    """(frame, None) for one of `frames.FRAMES`, (`resized`, size in px) for `resized:WxH`.

    Raises ConfigError for anything else.
    """
    if text in FRAMES:
        return text, None
    match = re.fullmatch(r"resized:([1-9][0-9]{0,6})x([1-9][0-9]{0,6})", text)
    if match is None:
        raise ConfigError(
            f"there is no frame {text!r}{did_you_mean(text, FRAMES)}",
            fix=f"one of {', '.join(FRAMES)}, or resized:WxH",
        )
    return "resized", (int(match[1]), int(match[2]))


def _measure(
    task: str,
    path: Path,
    file: PredictionFile,
    out: Path,
    console: Console | None,
    reading: Reading,
    *,
    settings: Mapping[str, Any] | None = None,
    normalise: Sequence[str] = (),
    fox_compat: bool = False,
) -> Version:
    """Write predictions and metrics; `settings` count beside those of every file."""
    console = console or Console()
    truth = _prompts(file.rows)
    tasks = tasks_of(truth)
    counted = {
        "task": tasks[0] if len(tasks) == 1 else MIXED,
        "reward": {REWARD: 1.0},
        "file_sha256": file_sha256(path),
        "normalise": list(normalise),
        **reading.text_settings(),
        **(settings or {}),
    }
    measured = [metric.name for metric in measured_metrics(tasks)]
    for message in missing_metrics([task]).values():
        console.say(f"{STAGE} {path.stem}: {message}")
    _print_mended(console, path, file.mended)
    if normalise:
        console.say(f"{STAGE} {path.stem}: {named_forms(normalise)}")

    def measure(made: pa.Table) -> list[Row]:
        for line in doubts_of(made, truth, reading):
            console.say(f"{STAGE} {path.stem}: {line}")
        return summarise(made, truth, reading=reading, normalise=normalise, fox_compat=fox_compat)

    return _make_both(
        Recipe("predictions", _variant(path), STAGE, STAGE_VERSION, counted),
        lambda: _answers(file.rows, truth, reading, normalise),
        {"fox_compat": fox_compat, "metrics": measured},
        measure,
        {"mended_completions": file.mended, INDISTINCT: file.indistinct},
        out,
        console,
    )


def _make_both(
    recipe: Recipe,
    answers: Callable[[], list[Row]],
    metric_settings: Row,
    measure: Callable[[pa.Table], Sequence[Row]],
    counts: Mapping[str, int],
    out: Path,
    console: Console,
) -> Version:
    """Write the predictions, then the metrics, each unless it is already there."""

    def write_answers(writer: Writer) -> Mapping[str, Any]:
        writer.write_part(0, answers())
        return counts

    def write_metrics(writer: Writer) -> None:
        writer.write_part(0, list(measure(made.table())))

    made = make_at(out / "predictions", recipe, write_answers, console)
    inputs = {"predictions": made}
    metrics = Recipe("metrics", recipe.variant, STAGE, STAGE_VERSION, metric_settings, inputs)
    return make_at(out / "metrics", metrics, write_metrics, console)


def _pope_sha256(answers: Path, questions: Path | None, labels: Mapping[str, Path]) -> Row:
    """The sha256 of every file, as the fingerprint has them."""
    by_category = {category: file_sha256(path) for category, path in labels.items()}
    return {
        "answers": file_sha256(answers),
        "questions": questions and file_sha256(questions),
        "labels": by_category,
    }


def _prompts(rows: Sequence[Row]) -> pa.Table:
    """The rows' truth under the columns of PROMPTS; an image is identified by its name alone."""
    wanted = dict.fromkeys([*TRUTH_COLUMNS, "dataset", "split", "image_sha256"])
    fields = [PROMPTS.columns.field(name).with_nullable(True) for name in wanted]
    known = [row | {"image_sha256": _image_id(row, row["image_key"])} for row in rows]
    return pa.Table.from_pylist(known, schema=pa.schema(fields))


def _answers(
    rows: Sequence[Row], truth: pa.Table, reading: Reading, normalise: Sequence[str]
) -> list[Row]:
    """PREDICTIONS rows."""
    given = [_answer(row, row["image_key"]) for row in rows]
    columns = ("prompt_id", "completion", "resized")
    fields = [PREDICTIONS.columns.field(name) for name in columns]
    samples = pa.Table.from_pylist(given, schema=pa.schema(fields)).append_column(
        "sample_id", pa.array([0] * len(rows), pa.int32())
    )
    scored = score_samples(
        samples, truth, reward=REWARD, reading=reading, normalise=normalise
    ).to_pylist()
    measured = ("reward", "parse_ok", "box")
    return [row | {k: found[k] for k in measured} for row, found in zip(given, scored, strict=True)]


def _answer(row: Row, image: str | None) -> Row:
    """A PREDICTIONS row without its reward; how the completion was made is unknown."""
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


def _variant(path: Path) -> str:
    """The file's name, in characters that a manifest can hold."""
    return path.stem.encode("utf-8", "replace").decode()


def _image_id(row: Row, image: str | None) -> str:
    return str(row["prompt_id"]) if image is None else question_key("image", image)


def _print_mended(console: Console, path: Path, mended: int) -> None:
    if mended:
        console.say(
            f"{STAGE} {path.stem}: {mended} completions hold halves of characters (lone "
            "surrogates); each half is written as U+FFFD"
        )
