"""Ask a run's model one question: the same input, backend and decoding as in its stages."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from perpo_pipeline.answers.settings import Reading
from perpo_pipeline.ask.question import GROUNDING, TASKS, VQA, Question, task_of_truth
from perpo_pipeline.config.by_task import check_tasks
from perpo_pipeline.config.evaluations import BASE
from perpo_pipeline.config.inference import InferenceConfig
from perpo_pipeline.drawing.marks import ANSWER, Mark, box, outline, point, truth_marks
from perpo_pipeline.errors import ConfigError, InputError, PerpoError
from perpo_pipeline.inference.answering import warn_of_boxes, with_most_images
from perpo_pipeline.inference.backend import BackendSetup
from perpo_pipeline.inference.backends import check_adapter, choose_backend
from perpo_pipeline.inference.part_sampler import PLACE_IN_PART, PartSampler
from perpo_pipeline.rewards.builtin import AUTO, REWARDS, Answers
from perpo_pipeline.rewards.choice import columns_of
from perpo_pipeline.rewards.scoring import score_samples
from perpo_pipeline.run import Run
from perpo_pipeline.store.schemas import PROMPTS, SAMPLES
from perpo_pipeline.suggestions import closest, closest_path
from perpo_pipeline.vlm.inputs import find_model

Row = dict[str, Any]
FEW_MARKS = 3
THIN = replace(ANSWER, line_px=1.5)


@dataclass(frozen=True)
class Answer:
    """One answer: what the model wrote, and what was read in it.

    `text` is the answer without thoughts and tags, None if there is none. `marks` are the boxes,
    outline or point that were read, in pixels of the image; `read` says the same in words.
    `reward` and `parse_ok` are None without a truth.
    """

    completion: str
    finish_reason: str
    text: str | None
    marks: Sequence[Mark]
    read: str
    reward: float | None
    parse_ok: bool | None


def choose_task(run: Run, truth: str | None) -> str:
    """The task of a question: that of its truth, else that of the run's prompts, else VQA.

    Raises ConfigError if the run has several tasks that the question may belong to.
    """
    of_truth = None if truth is None else task_of_truth(truth)
    if of_truth == GROUNDING:
        return GROUNDING
    tasks = tasks_of_run(run)
    if of_truth is not None:  # a text
        tasks = [task for task in tasks if task != GROUNDING]
    if len(tasks) > 1:
        options = " or ".join(f"--task {task}" for task in tasks)
        raise ConfigError(
            f"the prompts of this run have the tasks {' and '.join(tasks)}, and each is asked "
            "differently",
            fix=f"say which task the question is: {options}",
        )
    return tasks[0] if tasks else VQA


def tasks_of_run(run: Run) -> list[str]:
    """The tasks of the prompts that the run has or, before they are made, of its sources.

    Empty where only data that are not prepared yet say it.
    """
    found: dict[str, None] = {}
    for split in run.config.prepare:
        try:
            column = run.latest("prompts", split).table(columns=["task"])["task"]
            found |= dict.fromkeys(column.unique().to_pylist())
        except PerpoError:  # not prepared yet
            found |= dict.fromkeys(run.config.tasks_of([split]) or ())
    return [task for task in TASKS if task in found]


def find_adapter(run: Run, name: str | None) -> Path | None:
    """The folder of an adapter, by a trained method's name or by its own path; None for the base.

    Raises ConfigError if it is neither, ArtifactError if the method has not been trained.
    """
    if name is None or name == BASE:
        return None
    methods = list(run.config.train.variants())
    if name in methods:
        return run.latest("adapter", name).path
    if not Path(name).is_dir():
        near = closest_path(Path(name)) if "/" in name else closest(name, [BASE, *methods])
        meant = f"; did you mean '{near}'?" if near else ""
        raise ConfigError(
            f"--adapter {name}: there is no such folder, and this run trains no such method{meant}",
            fix=f"give an adapter's folder, or one of {', '.join([BASE, *methods])}",
        )
    return replace(run, inputs={**run.inputs, "adapter": Path(name)}).latest("adapter").path


def ask(
    run: Run, question: Question, adapter: Path | None, num_samples: int | None
) -> list[Answer]:
    """The greedy answer as `perpo eval` decodes it, or `num_samples` as `perpo sample` draws them.

    Raises InputError if the prompt cannot be answered, ConfigError if `score.reward` measures
    against another truth than the one that was given, or a setting by task lacks the task.
    """
    _check_reward(run, question)
    section = "eval" if num_samples is None else "sample"
    check_tasks(getattr(run.config, section), section, [question.task], "this question")
    config: InferenceConfig = run.config.eval
    if num_samples is not None:
        config = run.config.sample.model_copy(update={"num_samples": num_samples})
    rows = _answer(run, question.row, config, adapter)
    samples = pa.Table.from_pylist(rows, schema=SAMPLES.columns)
    reading = run.config.model.reading()
    scores = _score(run, question, samples, reading)
    frame = pl.DataFrame(samples).with_columns(
        pl.lit(question.row[name]).alias(name) for name in PROMPTS.role("size")
    )
    answers = Answers(frame, reading)
    texts, marks = answers.texts.to_list(), read_marks(answers, question)
    return [
        Answer(
            row["completion"],
            row["finish_reason"],
            text,
            found,
            _in_words(found, text, question),
            **score,
        )
        for row, text, found, score in zip(rows, texts, marks, scores, strict=True)
    ]


def _check_reward(run: Run, question: Question) -> None:
    """Raise ConfigError if the truth that was given is not what `score.reward` measures against."""
    needed = {name: REWARDS[name].truth for name in run.config.score.weights() if name in REWARDS}
    given = question.truths
    for name, truth in needed.items() if given else ():
        if truth not in given:
            raise ConfigError(
                f"score.reward {name} measures against {truth}, but --truth gives {given[0]}",
                fix=f"choose another reward, such as --set score.reward={AUTO}, or leave out "
                "--truth",
            )


def _answer(run: Run, row: Row, config: InferenceConfig, adapter: Path | None) -> list[Row]:
    """SAMPLES rows of the one prompt."""
    model = run.config.model
    backend = choose_backend(config, model.device, model.quantization)
    check_adapter(backend, adapter)
    resolved, settings = find_model(model, run.scratch, computes_here=config.computes_here)
    setup = BackendSetup(
        model,
        resolved,
        settings,
        config.model_copy(update={"backend": backend}),
        run.scratch,
        adapter=adapter,
    )
    warn_of_boxes(run, "ask", setup, pa.table({"task": [row["task"]]}))
    setup = with_most_images(setup, pa.Table.from_pylist([row], schema=PROMPTS.columns))
    with closing(PartSampler(setup, run.config.seed)) as sampler:
        rows = sampler.sample([{**row, PLACE_IN_PART: 0}], lambda prompts, found: None)
        for note in sampler.backend.notes().values():
            run.say(f"ask: {note}")
    if "reason" in rows[0]:
        raise InputError(f"the question cannot be answered: {rows[0]['reason']}")
    return rows


def _score(
    run: Run, question: Question, samples: pa.Table, reading: Reading
) -> list[Mapping[str, Any]]:
    """Reward and parse_ok of each answer, None without a truth."""
    if not question.truths:
        return [{"reward": None, "parse_ok": None}] * samples.num_rows
    weights = run.config.score.weights()
    names = columns_of(weights)
    prompts = pa.table(
        {n: pa.array([question.row[n]], PROMPTS.columns.field(n).type) for n in names}
    )
    scores = score_samples(
        samples, prompts, reward=weights, reading=reading, normalise=run.config.score.normalise
    )
    rows: list[Mapping[str, Any]] = scores.select(["reward", "parse_ok"]).to_pylist()
    return rows


def read_marks(answers: Answers, question: Question) -> list[list[Mark]]:
    """What each answer shows on the image: boxes, or an outline or a point where that is the truth.

    As scoring reads them. Nothing for a question that asks for a text.
    """
    if question.task != GROUNDING:
        return [[] for _ in range(answers.rows.height)]
    if "gt_boxes" in question.truths and "gt_box" not in question.truths:
        return [[box(one, ANSWER) for one in _known(boxes)] for boxes in answers.box_lists()]
    if "gt_polygon" in question.truths:
        found = answers.polygons()
        return [[] if one is None else [outline(one.ravel().tolist(), ANSWER)] for one in found]
    if "gt_point" in question.truths:
        return [[point(one, ANSWER) for one in _known(p[None])] for p in answers.points()]
    return [[box(one, ANSWER) for one in _known(b[None])] for b in answers.boxes()]


def _known(rows: Any) -> list[list[float]]:
    """The rows that were read, without those of NaN."""
    found: list[list[float]] = rows[~np.isnan(rows).any(axis=1)].tolist()
    return found


def all_marks(question: Question, answers: Sequence[Answer]) -> list[Mark]:
    """The truth's marks and the answers', equal ones of several answers once.

    A few answers are labelled with their numbers. Of many, drawn with thin lines, only the one with
    the highest reward is.
    """
    numbered: dict[Mark, list[int]] = {}
    for number, answer in enumerate(answers, 1):
        for mark in answer.marks:
            numbered.setdefault(mark, []).append(number)
    best = max(range(len(answers)), key=lambda i: answers[i].reward or 0.0) + 1
    is_crowded = len(numbered) > FEW_MARKS
    found = []
    for mark, numbers in numbered.items():
        label = "answer" if len(answers) == 1 else ", ".join(map(str, numbers[:3]))
        style = THIN if is_crowded and best not in numbers else ANSWER
        if is_crowded:
            label = f"best ({best})" if best in numbers and question.truths else ""
        found.append(replace(mark, label=label, style=style))
    found.sort(key=lambda mark: mark.style == ANSWER)  # the best is drawn last
    return [*truth_marks(question.row), *found]


def _in_words(marks: Sequence[Mark], text: str | None, question: Question) -> str:
    if text is None:
        return "no answer: the thought does not end"
    if question.task != GROUNDING:
        return "a text" if text.strip() else "an empty text"
    if not marks:
        return "no box could be read"
    return "; ".join(_describe(mark, question.row) for mark in marks)


def _describe(mark: Mark, row: Row) -> str:
    """A mark's coordinates as they were read, and what is odd about them."""
    x1, y1, x2, y2 = mark.bounds()
    read = {"box": (*mark.points[0], *mark.points[len(mark.points) // 2]), "point": mark.points[0]}
    numbers = ", ".join(f"{value:.1f}" for value in read.get(mark.kind, (x1, y1, x2, y2)))
    is_inverted = mark.kind == "box" and read["box"] != (x1, y1, x2, y2)
    is_outside = x1 < 0 or y1 < 0 or x2 > row["width"] or y2 > row["height"]
    odd = ["inverted"] * is_inverted + ["reaches beyond the image"] * is_outside
    what = "outline within" if mark.kind == "outline" else mark.kind
    return f"{what} [{numbers}]" + (f" ({', '.join(odd)})" if odd else "")
