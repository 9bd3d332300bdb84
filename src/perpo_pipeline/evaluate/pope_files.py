"""Reads POPE's files: JSON lines or JSON lists of answers, questions and labels.

They are joined by their keys, never by position: answers to questions by `question_id`, questions
to labels by (image, text). A question that is asked under several ids has as many labels: they are
joined by `question_id` where questions and labels have the same ids.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from perpo_pipeline.answers.pipeline import answer_texts
from perpo_pipeline.answers.settings import Reading
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.evaluate.metrics import POPE
from perpo_pipeline.evaluate.pope import NO, YES, read_answer, says_yes
from perpo_pipeline.evaluate.prediction_files import mend_text, question_key, text_fault
from perpo_pipeline.json_files import Faults, Row, read_json_rows

ANY = ""  # the category of labels that are not given for one category
DEFAULT_READING = Reading()
Labels = Mapping[str, Path]
Key = tuple[str, str]
Group = dict[Key, list["_Entry"]]


@dataclass(frozen=True)
class _Entry:
    """A row of a file, and its place ("line 3")."""

    place: str
    row: Row

    @property
    def number(self) -> str | int | None:
        number = self.row.get("question_id")
        return number if isinstance(number, str | int) else None

    @property
    def category(self) -> str:
        return str(self.row.get("category") or ANY)

    @property
    def key(self) -> Key:
        """(image, question). Early copies of POPE write "imange" for "image"."""
        text = self.row["text"].split("\n", 1)[0].strip()
        return self.row["image"], text.replace("imange", "image")

    def named(self) -> str:
        return f"{self.place} with question_id {self.number}"


@dataclass(frozen=True)
class PopeAnswers:
    """The joined rows, and how many answers belong to categories that were not asked for.

    A row has prompt_id, image, question, category, is_yes (the truth), completion, mended,
    is_answered (false for a completion that ends within a thought), and says_yes and reads
    (pope.says_yes and pope.read_answer of the answer; false and None without one).
    """

    rows: list[Row]
    other_categories: int


def read_pope(
    answers: Path, questions: Path | None, labels: Labels, reading: Reading = DEFAULT_READING
) -> PopeAnswers:
    """Read the answers to the questions that `labels`, files by category, label.

    `reading` says how the text of an answer is found.

    The key ANY stands for questions of all categories. Without `questions` the label file holds the
    questions as well. Of a question's text only the first line counts: an instruction may follow
    it. Rows are in the order of the labels. Raises ConfigError for a category that does not exist
    or is missing, `InputError` that names every line that is broken, repeated, or without its
    counterpart in another file.
    """
    if questions is None:
        questions = _only_file(labels)
    asked = _entries(questions, ("question_id", "image", "text"), is_unique=True)
    answer_of = {e.number: e for e in _entries(answers, ("question_id", "text"), is_unique=True)}
    chosen = _by_category(asked, questions, labels)
    faults = Faults(questions)
    for entry in chain.from_iterable(chosen.values()):
        if entry.number not in answer_of:
            faults.add(entry.named(), f"no answer in {answers}")
    joined = {name: list(_join(chosen[name], questions, labels[name], faults)) for name in labels}
    _check_asked(asked, questions, answer_of, answers)
    rows = []
    for category, triples in joined.items():
        named = (category,) if len(labels) > 1 else ()
        for label, question, rank in triples:
            answer = answer_of[question.number].row["text"]
            rows.append(_row(label, answer, category, (*named, *((rank,) if rank else ()))))
    texts = answer_texts([row["completion"] for row in rows], reading)
    return PopeAnswers(
        [_read(*pair) for pair in zip(rows, texts, strict=True)], len(asked) - len(rows)
    )


def _only_file(labels: Labels) -> Path:
    if len(labels) > 1:
        raise ConfigError(
            "several files of labels use the same question_id for different questions",
            fix="give --questions, the file whose question_id the answers have",
        )
    return next(iter(labels.values()))


def _by_category(
    asked: Sequence[_Entry], questions: Path, labels: Labels
) -> dict[str, list[_Entry]]:
    """The questions of each category of `labels`."""
    there = list(dict.fromkeys(entry.category for entry in asked if entry.category))
    if ANY in labels and len(there) > 1:
        raise ConfigError(
            f"the questions have the categories {', '.join(there)}, each with labels of its own",
            where=str(questions),
            fix=f"say which category the labels are for: --labels {there[0]}={labels[ANY].name}; "
            "repeat --labels for more categories",
        )
    for category in labels:
        if category not in (ANY, *there):
            has = f"the categories {', '.join(there)}" if there else "no categories"
            raise ConfigError(
                f"there are no questions of the category {category!r}: the file has {has}",
                where=str(questions),
                fix="correct --labels CATEGORY=FILE" if there else "give --labels FILE",
            )
    return {
        category: [entry for entry in asked if category in (ANY, entry.category)]
        for category in labels
    }


def _check_asked(
    asked: Sequence[_Entry], questions: Path, answer_of: Mapping[Any, _Entry], answers: Path
) -> None:
    faults, known = Faults(answers), {entry.number for entry in asked}
    for number, entry in answer_of.items():
        if number not in known:
            faults.add(entry.named(), f"not among the questions in {questions}")
    faults.check()


def _join(
    asked: Sequence[_Entry], questions: Path, labels: Path, question_faults: Faults
) -> Iterator[tuple[_Entry, _Entry, int]]:
    """Each label with its question, and how many questions before it ask the same."""
    labelled = _entries(labels, ("image", "text", "label"), check=_label_fault)
    label_faults = Faults(labels)
    by_label, by_question = _grouped(labelled), _grouped(asked)
    question_of: dict[str, tuple[_Entry, int]] = {}
    for key, group in by_label.items():
        same = by_question.get(key, [])
        if not same:
            label_faults.add(group[0].place, f"{key}: no question about it in {questions}")
        elif len(group) > len(same):
            label_faults.add(group[len(same)].place, f"{key} is given twice")
        elif len(group) < len(same):
            question_faults.add(
                same[len(group)].named(),
                f"asks the same as question_id {same[0].number}, and {labels} has "
                f"{len(group)} label{'s' * (len(group) > 1)} for it: {key}",
            )
        elif (pairs := _pairs(group, same)) is None:
            label_faults.add(
                group[0].place,
                f"{key} is labelled both yes and no, and question_id does not say which is which",
            )
        else:
            question_of |= pairs
    for key in by_question.keys() - by_label.keys():
        for entry in by_question[key]:
            question_faults.add(entry.named(), f"no label in {labels} for {key}")
    question_faults.check()
    label_faults.check()
    for label in labelled:
        yield label, *question_of[label.place]


def _pairs(group: Sequence[_Entry], same: Sequence[_Entry]) -> dict[str, tuple[_Entry, int]] | None:
    """By the place of each label: its question, of those that ask the same, and its rank there.

    None if question_id does not join them and the labels differ.
    """
    ranked = sorted(same, key=lambda entry: str(entry.number))
    by_number = {entry.number: (entry, rank) for rank, entry in enumerate(ranked)}
    if {entry.number for entry in group} == by_number.keys():
        return {entry.place: by_number[entry.number] for entry in group}
    if len({entry.row["label"] for entry in group}) > 1:
        return None
    pairs = zip(group, ranked, strict=True)
    return {label.place: (entry, rank) for rank, (label, entry) in enumerate(pairs)}


def _grouped(entries: Sequence[_Entry]) -> Group:
    found: Group = {}
    for entry in entries:
        found.setdefault(entry.key, []).append(entry)
    return found


def _row(label: _Entry, answer: str, category: str, extra: tuple[str | int, ...]) -> Row:
    completion = mend_text(answer)
    truth = label.row["label"]
    return {
        "prompt_id": question_key(POPE, *label.key, truth, *extra),
        "image": label.key[0],
        "question": label.key[1],
        "category": category,
        "is_yes": truth == YES,
        "completion": completion,
        "mended": completion != answer,
    }


def _read(row: Row, answer: str | None) -> Row:
    if answer is None:
        return row | {"is_answered": False, "says_yes": False, "reads": None}
    return row | {
        "is_answered": True,
        "says_yes": says_yes(answer),
        "reads": read_answer(answer),
    }


def _label_fault(row: Row) -> str | None:
    known = row["label"] in (YES, NO)
    return None if known else f"`label` is {row['label']!r}, neither 'yes' nor 'no'"


def _entries(
    path: Path,
    keys: Sequence[str],
    *,
    is_unique: bool = False,
    check: Callable[[Row], str | None] = lambda row: None,
) -> list[_Entry]:
    """The file's rows, each question_id once if `is_unique`; fields other than `keys` are ignored.

    Raises InputError with every faulty row.
    """
    faults = Faults(path)
    found: list[_Entry] = []
    seen = set()
    for place, row in read_json_rows(path, faults):
        fault = next(_faults_of(row, keys), None) or check(row)
        if fault is None and is_unique and row["question_id"] in seen:
            fault = f"question_id {row['question_id']!r} is given twice"
        if fault is None:
            seen.add(row.get("question_id") if is_unique else None)
            found.append(_Entry(place, row))
        else:
            faults.add(place, fault)
    if not found and not faults.found:
        faults.add("line 1", "the file is empty")
    faults.check()
    return found


def _faults_of(row: Row, keys: Sequence[str]) -> Iterator[str]:
    for key in keys:
        if row.get(key) is None:
            yield f"`{key}` is missing"
    number = row.get("question_id")
    if "question_id" in keys and (not isinstance(number, str | int) or isinstance(number, bool)):
        yield f"`question_id` is neither text nor a whole number: {number!r}"
    texts = [key for key in keys if key not in ("question_id", "text")]
    if fault := text_fault(row, texts):
        yield fault
    if not isinstance(row["text"], str):
        yield f"`text` is not text: {row['text']!r}"
