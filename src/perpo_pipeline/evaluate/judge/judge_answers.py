"""`perpo judge`: questions and a judge's server, or its replies -> judgements and metrics.

Every reply is stored unchanged; the same command asks only the questions without one. Metrics are
measured over all questions and by group. A question with an unparsed reply counts only in
parse_rate.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from perpo_pipeline.answers.settings import Reading
from perpo_pipeline.evaluate.judge.asking import Judge, Reply, ask_all
from perpo_pipeline.evaluate.judge.images import images_sha256
from perpo_pipeline.evaluate.judge.inputs import DEFAULT_READING
from perpo_pipeline.evaluate.judge.task import ALL, Question, Review, Task
from perpo_pipeline.evaluate.statistics import mean_interval
from perpo_pipeline.run import Console, make_at
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.atomic import file_sha256
from perpo_pipeline.store.writing import Recipe, Writer

STAGE_VERSION = 1
REPLIES_PER_PART = 32  # a kill loses at most 31 received replies, which are asked for again

Row = dict[str, Any]


def judge_questions(
    task: Task,
    questions: Sequence[Question],
    files: Mapping[str, Path],
    judge: Judge,
    *,
    reading: Reading = DEFAULT_READING,
    out: Path,
    console: Console,
) -> Version:
    """Ask the judge every question and measure its replies: `judgements`, `metrics` under `out`.

    The questions were made from `files`, whose answers were found by `reading`. Returns the
    metrics; raises what `ask_all` raises, with all replies so far on disk.
    """
    images = images_sha256(questions)
    settings = {
        **_settings(task, files, judge.model),
        **({} if images is None else {"images_sha256": images}),
        # Answers without thoughts and tags are the same for every reading.
        **(reading.text_settings() if any(q.is_trimmed for q in questions) else {}),
        "prompt_sha256": task.prompt_sha256(with_image=images is not None),
        "temperature": 0.0,
        "max_tokens": judge.max_tokens,
    }
    recipe = Recipe(
        "judgements",
        task.name,
        "judge",
        STAGE_VERSION,
        settings,
        notes={"base_url": judge.base_url},
    )

    def work(writer: Writer) -> Row:
        _Asking(writer, task, judge, questions, console).ask()
        return {}

    return _measure(task, make_at(out / "judgements", recipe, work, console), out, console)


def measure_reviews(
    task: Task,
    reviews: Sequence[Review],
    files: Mapping[str, Path],
    model: str | None,
    *,
    out: Path,
    console: Console,
) -> Version:
    """Measure replies that were collected elsewhere, without a server. Returns the metrics."""
    recipe = Recipe("judgements", task.name, "judge", STAGE_VERSION, _settings(task, files, model))

    def work(writer: Writer) -> None:
        rows = [
            _row(task, review, model) | _read(task, Reply(review.reply, None)) for review in reviews
        ]
        writer.write_part(0, rows)

    return _measure(task, make_at(out / "judgements", recipe, work, console), out, console)


def measured_rows(task: Task, judgements: Iterable[Row]) -> tuple[list[Row], Row]:
    """METRICS rows from JUDGEMENTS rows, for all and by group, and counts of what was left out.

    `split` is the task's name. A group without a fully parsed question has only a parse_rate.
    """
    items: dict[str, list[Row]] = {}
    for row in judgements:
        items.setdefault(row["item_id"], []).append(row)
    ordered = [sorted(items[item], key=lambda row: row["order"]) for item in sorted(items)]
    groups = sorted({group for rows in ordered for group in rows[0]["groups"]})
    found = []
    for group in (ALL, *groups):
        members = [rows for rows in ordered if group == ALL or group in rows[0]["groups"]]
        found += _group_rows(task, group, members)
    unparsed = [row for rows in ordered for row in rows if not row["parse_ok"]]
    return found, {
        "questions": len(ordered),
        "left_out": len({row["item_id"] for row in unparsed}),
        "replies_unparsed": len(unparsed),
        "of_them_cut": sum(row["finish_reason"] == "length" for row in unparsed),
        "of_them_missing": sum(row["failure"] is not None for row in unparsed),
    }


def _group_rows(task: Task, group: str, items: Sequence[Sequence[Row]]) -> list[Row]:
    parsed = [[row["parse_ok"] for row in rows] for rows in items]
    usable = [[row["scores"] for row in rows] for rows in items if all(r["parse_ok"] for r in rows)]
    measured = dict(task.measure(np.array(usable))) if usable else {}
    found = [(name, interval, len(usable)) for name, interval in measured.items()]
    found.append(("parse_rate", mean_interval(np.mean(parsed, axis=1)), len(items)))
    return [
        {
            "name": name,
            "value": value,
            "low": low,
            "high": high,
            "n": n,
            "split": task.name,
            "dataset": group,
        }
        for name, (value, low, high), n in found
    ]


def _measure(task: Task, judgements: Version, out: Path, console: Console) -> Version:
    recipe = Recipe("metrics", task.name, "judge", STAGE_VERSION, {}, {"judgements": judgements})

    def work(writer: Writer) -> Row:
        rows, counts = measured_rows(task, judgements.table().to_pylist())
        writer.write_part(0, rows)
        return counts

    metrics = make_at(out / "metrics", recipe, work, console)
    counts = metrics.manifest["counts"]
    if counts["left_out"]:
        console.say(
            f"judge {task.name}: {counts['left_out']} of {counts['questions']} questions count "
            f"only in parse_rate: {counts['replies_unparsed']} replies are not definite "
            f"({counts['of_them_cut']} cut by --max-tokens, {counts['of_them_missing']} missing)"
        )
    return metrics


class _Asking:
    """Asks the questions that have no reply on disk yet, and writes the replies.

    Replies are written in the order in which they arrive: a question that is never answered must
    not keep the other replies from the disk.
    """

    def __init__(
        self,
        writer: Writer,
        task: Task,
        judge: Judge,
        questions: Sequence[Question],
        console: Console,
    ) -> None:
        self.writer, self.task, self.judge = writer, task, judge
        self.questions, self.console = questions, console
        self.rows: list[Row] = []
        self.free: list[int] = []  # parts that hold no reply

    def ask(self) -> None:
        """Ask the missing questions; the replies that arrived are on disk even if this raises."""
        pending = self._pending()
        there = len(self.questions) - len(pending)
        if there:
            self.console.say(
                f"judge {self.task.name}: {there} of {len(self.questions)} replies "
                "are already on disk"
            )
        if not pending:
            return
        with self.console.bar(
            f"judge {self.task.name}", len(self.questions), initial=there, unit="replies"
        ) as bar:
            try:
                failures = ask_all(self.judge, pending, partial(self._add, bar))
            finally:
                self._flush()
        for question, reason in failures:
            self.rows.append(_row(self.task, question, self.judge.model) | {"failure": reason})
        self._flush()

    def _pending(self) -> list[Question]:
        """The questions without a reply; a kill may have left rows that say so, which go."""
        there: set[tuple[str, int]] = set()
        for index in range(len(self.questions)):
            replies = self._replies(index) if self.writer.has_part(index) else []
            there.update((row["item_id"], row["order"]) for row in replies)
            if not replies:
                self.free.append(index)
        return [q for q in self.questions if (q.item_id, q.order) not in there]

    def _replies(self, index: int) -> list[Row]:
        """The rows of a part that have a reply; rows without one are removed from the disk."""
        rows = self.writer.read_part(index).to_pylist()
        replies = [row for row in rows if row["failure"] is None]
        if len(replies) < len(rows):
            self.writer.write_part(index, replies)
        return replies

    def _add(self, bar: Any, question: Question, reply: Reply) -> None:
        self.rows.append(_row(self.task, question, self.judge.model) | _read(self.task, reply))
        bar.update(1)
        if len(self.rows) >= REPLIES_PER_PART:
            self._flush()

    def _flush(self) -> None:
        if self.rows:
            self.writer.write_part(self.free.pop(0), self.rows)
            self.rows = []


def _settings(task: Task, files: Mapping[str, Path], model: str | None) -> Row:
    digests = {name: file_sha256(path) for name, path in files.items()}
    return {"task": task.name, "judge_model": model, "files_sha256": digests}


def _row(task: Task, asked: Question | Review, model: str | None) -> Row:
    """A JUDGEMENTS row without a reply."""
    return {
        "task": task.name,
        "item_id": asked.item_id,
        "order": asked.order if isinstance(asked, Question) else 0,
        "groups": list(asked.groups),
        "model": model,
        "prompt_sha256": _prompt_sha256(asked) if isinstance(asked, Question) else None,
        "reply": None,
        "finish_reason": None,
        "scores": None,
        "parse_ok": False,
        "failure": None,
    }


def _prompt_sha256(question: Question) -> str:
    """The sha256 of the prompt, and of the image's sha256 if the judge sees the image."""
    shown = f"\n{question.image.sha256}" if question.image else ""
    return hashlib.sha256((question.prompt + shown).encode()).hexdigest()


def _read(task: Task, reply: Reply) -> Row:
    """The columns that a reply fills."""
    scores = task.parse(reply.text)
    return {
        "reply": reply.text,
        "finish_reason": reply.finish_reason,
        "scores": scores,
        "parse_ok": scores is not None,
    }
