"""The `perpo measure` commands: completions and logs made elsewhere, and more samples."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perpo_pipeline.commands.options import (
    DEFAULT_CONFIG,
    AllowStale,
    Config,
    Debug,
    Json,
    Quiet,
    RunName,
    Scores,
    Set,
    open_run,
)
from perpo_pipeline.commands.output import print_rows
from perpo_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from perpo_pipeline.config.model import AnswerConfig
    from perpo_pipeline.store.artifacts import Version

measure_app = typer.Typer(
    help="Measure completions made elsewhere, or a run's samples.\n\n"
    "Needs no model. "
    "A file has one JSON object per line. Its rows may also name split and dataset (for metrics of "
    "each), id, and image (rows with the same image are resampled together).\n\n"
    "Example: perpo measure boxes FILE.jsonl --box-format llava --frame full --out DIR",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Out = Annotated[Path, typer.Option("--out", help="directory for predictions and metrics")]
OutOfHarness = Annotated[
    Path | None,
    typer.Option("--out", help="directory for the scores of the questions and the metrics"),
]

Thinking = Annotated[
    str,
    typer.Option(
        help="auto: what stands up to the last </think> is no answer; opened: the prompt opened "
        "the thought; none: nothing is taken off"
    ),
]
AnswerTag = Annotated[
    str, typer.Option(help="the tag around the answer, where a completion has it; none: no tag")
]
Which = Annotated[
    str, typer.Option(help="first or last: which of several answers in one completion")
]


Normalise = Annotated[
    str,
    typer.Option(
        help="normal forms of both texts before they are compared: none, or some of nfc, markdown "
        "and whitespace, as nfc,whitespace"
    ),
]


@measure_app.command()
def boxes(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="JSON lines: completion, gt_box [x1, y1, x2, y2] px, width, height"
        ),
    ],
    out: Out,
    box_format: Annotated[
        str | None,
        typer.Option(help="required: how the completions write boxes: llava, qwen3-vl, pixel, ..."),
    ] = None,
    frame: Annotated[
        str | None,
        typer.Option(
            help="required: image that the numbers refer to: full, crop, pad, resized, resized:WxH"
        ),
    ] = None,
    thinking: Thinking = "auto",
    answer_tag: AnswerTag = "answer",
    which: Which = "first",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure boxes in completions made elsewhere.

    Prints AP50, AP75, mean IoU and the parse rate. Each line of FILE has completion, gt_box, width
    and height; with --frame resized also resized [w, h]. For any number of boxes it has gt_boxes
    instead of gt_box, [] for none. The format and the frame are never guessed. Writes predictions
    and metrics.

    Example: perpo measure boxes FILE.jsonl --box-format llava --frame full --out DIR
    """
    from perpo_pipeline.evaluate.measure_files import measure_boxes
    from perpo_pipeline.run import Console

    found = measure_boxes(
        file,
        out=out,
        box_format=box_format,
        frame=frame,
        answer=parse_answer(thinking, answer_tag, which),
        console=Console(quiet),
    )
    _show(found, as_json)


@measure_app.command()
def pages(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="JSON lines: completion, gt_text; or the result file of Fox"
        ),
    ],
    out: Out,
    fox_compat: Annotated[
        bool,
        typer.Option(
            "--fox-compat", help="swap the two texts, as Fox's own script does, for its figures"
        ),
    ] = False,
    normalise: Normalise = "none",
    thinking: Thinking = "auto",
    answer_tag: AnswerTag = "answer",
    which: Which = "first",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure page texts in completions made elsewhere.

    Prints edit distance, F1, BLEU and more. Each line of FILE has completion and gt_text; the file
    may also be Fox's JSON list of image, question, label and answer. Writes predictions and
    metrics.

    Example: perpo measure pages FILE.jsonl --out DIR

    Example: perpo measure pages results_final.json --fox-compat --out DIR
    """
    from perpo_pipeline.evaluate.measure_files import measure_pages
    from perpo_pipeline.run import Console

    answer = parse_answer(thinking, answer_tag, which)
    found = measure_pages(
        file,
        out=out,
        normalise=parse_forms(normalise),
        fox_compat=fox_compat,
        answer=answer,
        console=Console(quiet),
    )
    _show(found, as_json)


@measure_app.command()
def answers(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines: completion, gt_text")],
    out: Out,
    normalise: Normalise = "none",
    thinking: Thinking = "auto",
    answer_tag: AnswerTag = "answer",
    which: Which = "first",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure short answers (VQA) made elsewhere.

    Each line of FILE has completion and gt_text. Writes predictions and metrics.

    Example: perpo measure answers FILE.jsonl --out DIR
    """
    from perpo_pipeline.evaluate.measure_files import measure_answers
    from perpo_pipeline.run import Console

    answer = parse_answer(thinking, answer_tag, which)
    found = measure_answers(
        file,
        out=out,
        normalise=parse_forms(normalise),
        answer=answer,
        console=Console(quiet),
    )
    _show(found, as_json)


@measure_app.command()
def pope(
    answers: Annotated[Path, typer.Option(help="the model's answers: question_id, text")],
    labels: Annotated[
        list[str],
        typer.Option(
            metavar="[CATEGORY=]FILE",
            help="POPE's labels: image, text, label; with CATEGORY= those of one category of the "
            "questions; may be repeated",
        ),
    ],
    out: Out,
    questions: Annotated[
        Path | None,
        typer.Option(help="the questions: question_id, image, text; default: the labels' file"),
    ] = None,
    thinking: Thinking = "auto",
    answer_tag: AnswerTag = "answer",
    which: Which = "first",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure answers to POPE's yes-or-no questions.

    Prints accuracy, precision, recall and F1 as POPE's own script does, how many answers say
    neither yes nor no, and what they change. Each file holds JSON lines or a JSON list. Writes
    predictions and metrics.

    Example: perpo measure pope --answers A.jsonl --questions Q.jsonl --labels L.json --out DIR

    Example: perpo measure pope --answers A.jsonl --questions llava_pope_test.jsonl
    --labels random=coco_pope_random.json --labels popular=coco_pope_popular.json --out DIR
    """
    from perpo_pipeline.evaluate.measure_files import measure_pope
    from perpo_pipeline.run import Console

    found = measure_pope(
        answers,
        questions=questions,
        labels=_by_category(labels),
        out=out,
        answer=parse_answer(thinking, answer_tag, which),
        console=Console(quiet),
    )
    _show(found, as_json)


def _by_category(labels: list[str]) -> dict[str, Path]:
    """Label files by category; "" for a file without one. Raises ConfigError for a repetition."""
    found: dict[str, Path] = {}
    for given in labels:
        category, _, path = given.rpartition("=")
        if Path(given).is_file():  # a file name may hold "="
            category, path = "", given
        if category in found or "" in found or (found and not category):
            raise ConfigError(
                f"--labels {given}: several files of labels need a category of their own each",
                fix="give --labels CATEGORY=FILE once for each category",
            )
        found[category] = Path(path)
    return found


@measure_app.command()
def harness(
    logs: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="finished logs of one model: lmms-eval's folder or *_results.json, or "
            "VLMEvalKit's folder",
        ),
    ],
    out: OutOfHarness = None,
    evaluation: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="instead of --out: take the logs over as results of this model of the run",
        ),
    ] = None,
    config: Config = DEFAULT_CONFIG,
    run: RunName = None,
    sets: Set = None,
    allow_stale: AllowStale = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Take over the finished logs of lmms-eval or VLMEvalKit.

    Prints each number as the harness reports it, in the harness's unit, with a 95 % interval where
    the logs hold the scores of the questions. Writes the scores and the metrics; `perpo compare`
    pairs two such directories question by question, `perpo report` the models of a run.

    Example: perpo measure harness logs/llava --out out/llava

    Example: perpo measure harness logs/llava --config configs/demo.yaml --evaluation base
    """
    from perpo_pipeline.evaluate.harness.measure_logs import file_logs, measure_logs
    from perpo_pipeline.run import Console

    if (out is None) == (evaluation is None):
        raise ConfigError(
            "logs are taken over either into a directory or into a run",
            fix="give --out, or --config and --evaluation",
        )
    if out is not None:
        _show(measure_logs(logs, out=out, console=Console(quiet)), as_json)
        return
    opened = open_run(config, sets, run=run, quiet=quiet, allow_stale=allow_stale)
    models = opened.config.eval_models()
    if evaluation not in models:
        raise ConfigError(
            f"--evaluation {evaluation}: this run has no such model", fix=f"choose one of {models}"
        )
    _show(file_logs(logs, opened, evaluation), as_json)


@measure_app.command(name="best-of-n")
def best_of_n(
    config: Config = DEFAULT_CONFIG,
    scores: Scores = None,
    allow_stale: AllowStale = False,
    sets: Set = None,
    run: RunName = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Print what the best of n samples is worth.

    For n = 1..N: the expected metric of the best, by reward, among n of the N samples of each
    prompt: AP50 and mean IoU of boxes, edit distance of texts, where lower is better. Each task is
    measured apart. Reads scores; writes nothing.

    Example: perpo measure best-of-n --config configs/demo.yaml
    """
    from perpo_pipeline.evaluate.best_of_n import best_of_n_rows, best_of_n_table

    opened = open_run(
        config, sets, run=run, quiet=quiet, inputs={"scores": scores}, allow_stale=allow_stale
    )
    found = opened.latest("scores", opened.config.sample.split)
    print_rows(best_of_n_rows(found), best_of_n_table, as_json)


def parse_answer(thinking: str, tag: str, which: str) -> "AnswerConfig":
    """Read `--thinking`, `--answer-tag` and `--which`; raises ConfigError."""
    from pydantic import ValidationError

    from perpo_pipeline.config.model import AnswerConfig
    from perpo_pipeline.errors import ConfigError

    given = {"thinking": thinking, "tag": None if tag == "none" else tag, "which": which}
    options = {"thinking": "--thinking", "tag": "--answer-tag", "which": "--which"}
    try:
        return AnswerConfig.model_validate(given)
    except ValidationError as error:
        faults = [
            f"{options[str(one['loc'][0])]} {one['input']!r}: {one['msg']}"
            for one in error.errors()
        ]
        raise ConfigError("; ".join(faults), fix="see `perpo measure boxes --help`") from error


def _show(metrics: "Version", as_json: bool) -> None:
    from perpo_pipeline.evaluate.printing import metrics_table

    print_rows(metrics.table().to_pylist(), metrics_table, as_json)


def parse_forms(text: str) -> list[str]:
    """Read `--normalise`: `none`, or names separated by commas; raises ConfigError."""
    from perpo_pipeline.rewards.normalise import NORMAL_FORMS

    names = [] if text == "none" else text.split(",")
    if [name for name in names if name not in NORMAL_FORMS] or len(set(names)) < len(names):
        raise ConfigError(
            f"--normalise {text!r} cannot be read",
            fix=f"give none, or some of {', '.join(NORMAL_FORMS)}, as nfc,whitespace",
        )
    return [name for name in NORMAL_FORMS if name in names]
