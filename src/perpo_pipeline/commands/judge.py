"""The `perpo judge` commands, one per benchmark."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from perpo_pipeline.commands.measure import AnswerTag, Thinking, parse_answer
from perpo_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from perpo_pipeline.answers.settings import Reading
    from perpo_pipeline.evaluate.judge.asking import Judge
    from perpo_pipeline.evaluate.judge.images import ImageFolder
    from perpo_pipeline.evaluate.judge.task import Question, Review, Task
    from perpo_pipeline.store.artifacts import Version

judge_app = typer.Typer(
    help="Let a language model rate answers to a benchmark.\n\n"
    "Reads files of answers; writes judgements and metrics. The judge is a model on any "
    "OpenAI-compatible server. The key is read from PERPO_API_KEY or OPENAI_API_KEY. Replies are "
    "stored: the same command asks only the missing ones.\n\n"
    "Example: perpo judge win-rate --help",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Out = Annotated[Path, typer.Option("--out", help="directory for judgements and metrics")]
BaseUrl = Annotated[
    str | None,
    typer.Option("--base-url", help="address of the judge's server, e.g. http://host:8000/v1"),
]
JudgeModel = Annotated[
    str | None, typer.Option("--judge-model", help="name of the judge's model on its server")
]
MaxTokens = Annotated[
    int, typer.Option(min=1, help="tokens in a reply, at most, including thoughts")
]
Concurrency = Annotated[int, typer.Option(min=1, help="number of open requests to the server")]
MaxErrors = Annotated[int, typer.Option(min=0, help="number of questions that may get no reply")]
WithImage = Annotated[
    bool, typer.Option("--with-image", help="show the judge the image of each question, too")
]
ImageDir = Annotated[
    Path | None,
    typer.Option(help="folder of the images; default: the folder of the file that names them"),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress bar (for logs)")]
Debug = Annotated[bool, typer.Option("--debug", help="show the traceback of an error")]
MAX_TOKENS, CONCURRENCY = 1024, 8

Say = Callable[[str], None]
Value = TypeVar("Value")


@judge_app.command(name="win-rate")
def win_rate(
    questions: Annotated[
        Path, typer.Option(help="JSON lines: question_id, text, reference, dataset, image")
    ],
    answers: Annotated[Path, typer.Option(help="model A's answers, JSON lines: question_id, text")],
    answers_b: Annotated[
        Path, typer.Option(help="model B's answers, JSON lines: question_id, text")
    ],
    out: Out,
    base_url: BaseUrl = None,
    judge_model: JudgeModel = None,
    max_tokens: MaxTokens = MAX_TOKENS,
    concurrency: Concurrency = CONCURRENCY,
    max_errors: MaxErrors = 0,
    with_image: WithImage = False,
    image_dir: ImageDir = None,
    thinking: Thinking = "auto",
    answer_tag: AnswerTag = "answer",
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare the answers of models A and B.

    The judge sees each question twice, with the answers in both orders.

    Example: perpo judge win-rate --questions q.jsonl --answers perpo.jsonl --answers-b base.jsonl
    --base-url http://127.0.0.1:8000/v1 --judge-model NAME --out judged
    """
    from perpo_pipeline.evaluate.judge import win_rate as task

    judge = _judge(base_url, judge_model, max_tokens, concurrency, max_errors)
    images = _images(with_image, image_dir, questions)
    reading = _reading(thinking, answer_tag)
    files = {"questions": questions, "answers": answers, "answers_b": answers_b}
    _ask(
        task.WIN_RATE,
        lambda say: task.read_questions(questions, answers, answers_b, say, images, reading),
        files,
        judge,
        reading,
        out,
        quiet,
    )


@judge_app.command(name="llava-bench")
def llava_bench(
    out: Out,
    questions: Annotated[Path | None, typer.Option(help="the benchmark's questions.jsonl")] = None,
    context: Annotated[
        Path | None, typer.Option(help="the benchmark's context.jsonl (captions)")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="the reference's answers, JSON lines")
    ] = None,
    answers: Annotated[Path | None, typer.Option(help="the model's answers, JSON lines")] = None,
    reviews: Annotated[
        Path | None, typer.Option(help="finished reviews, instead of asking a judge")
    ] = None,
    base_url: BaseUrl = None,
    judge_model: JudgeModel = None,
    max_tokens: MaxTokens = MAX_TOKENS,
    concurrency: Concurrency = CONCURRENCY,
    max_errors: MaxErrors = 0,
    with_image: WithImage = False,
    image_dir: ImageDir = None,
    thinking: Thinking = "auto",
    answer_tag: AnswerTag = "answer",
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Rate answers to LLaVA-Bench-in-the-Wild from 1 to 10.

    The judge rates the answers of a reference together with the model's.

    Example: perpo judge llava-bench --reviews reviews.jsonl --out judged
    """
    from perpo_pipeline.evaluate.judge import llava_bench as task

    given = {"questions": questions, "context": context, "reference": reference, "answers": answers}
    if reviews is not None:
        asking = _given_for_asking(base_url, with_image, image_dir, thinking, answer_tag)
        _refuse({**given, **asking})
        _measure(
            task.LLAVA_BENCH,
            lambda say: task.read_reviews(reviews, say),
            reviews,
            judge_model,
            out,
            quiet,
        )
        return
    files = _all_of(given)
    judge = _judge(base_url, judge_model, max_tokens, concurrency, max_errors)
    images = _images(with_image, image_dir, files["questions"])
    reading = _reading(thinking, answer_tag)
    _ask(
        task.LLAVA_BENCH,
        lambda say: task.read_questions(**files, say=say, images=images, reading=reading),
        files,
        judge,
        reading,
        out,
        quiet,
    )


@judge_app.command()
def mmhal(
    out: Out,
    responses: Annotated[
        Path | None, typer.Option(help="the benchmark's JSON list with every model_answer filled")
    ] = None,
    reviews: Annotated[
        Path | None, typer.Option(help="a JSON list of replies, instead of asking a judge")
    ] = None,
    base_url: BaseUrl = None,
    judge_model: JudgeModel = None,
    max_tokens: MaxTokens = MAX_TOKENS,
    concurrency: Concurrency = CONCURRENCY,
    max_errors: MaxErrors = 0,
    with_image: WithImage = False,
    image_dir: ImageDir = None,
    thinking: Thinking = "auto",
    answer_tag: AnswerTag = "answer",
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Rate answers to MMHal-Bench from 0 to 6.

    An answer below 3 makes something up.

    Example: perpo judge mmhal --responses filled.json --base-url http://127.0.0.1:8000/v1
    --judge-model NAME --out judged
    """
    from perpo_pipeline.evaluate.judge import mmhal as task

    given = {"responses": responses}
    if reviews is not None:
        asking = _given_for_asking(base_url, with_image, image_dir, thinking, answer_tag)
        _refuse({**given, **asking})
        _measure(
            task.MMHAL,
            lambda say: task.read_reviews(reviews, say),
            reviews,
            judge_model,
            out,
            quiet,
        )
        return
    files = _all_of(given)
    judge = _judge(base_url, judge_model, max_tokens, concurrency, max_errors)
    images = _images(with_image, image_dir, files["responses"])
    reading = _reading(thinking, answer_tag)
    _ask(
        task.MMHAL,
        lambda say: task.read_questions(**files, say=say, images=images, reading=reading),
        files,
        judge,
        reading,
        out,
        quiet,
    )


@judge_app.command(name="mm-vet")
def mm_vet(
    dataset: Annotated[Path, typer.Option(help="the benchmark's own JSON file")],
    answers: Annotated[
        Path, typer.Option(help="the model's answers, a JSON object from id to answer")
    ],
    out: Out,
    base_url: BaseUrl = None,
    judge_model: JudgeModel = None,
    max_tokens: MaxTokens = MAX_TOKENS,
    concurrency: Concurrency = CONCURRENCY,
    max_errors: MaxErrors = 0,
    with_image: WithImage = False,
    image_dir: ImageDir = None,
    thinking: Thinking = "auto",
    answer_tag: AnswerTag = "answer",
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Grade free-text answers to MM-Vet from 0 to 1.

    Prints the grades overall and by capability.

    Example: perpo judge mm-vet --dataset mm-vet.json --answers answers.json
    --base-url http://127.0.0.1:8000/v1 --judge-model NAME --out judged
    """
    from perpo_pipeline.evaluate.judge import mm_vet as task

    judge = _judge(base_url, judge_model, max_tokens, concurrency, max_errors)
    images = _images(with_image, image_dir, dataset)
    reading = _reading(thinking, answer_tag)
    _ask(
        task.MM_VET,
        lambda say: task.read_questions(dataset, answers, say, images, reading),
        {"dataset": dataset, "answers": answers},
        judge,
        reading,
        out,
        quiet,
    )


def _judge(
    base_url: str | None, model: str | None, max_tokens: int, concurrency: int, max_errors: int
) -> "Judge":
    from perpo_pipeline.evaluate.judge.asking import Judge

    named = _all_of({"base-url": base_url, "judge-model": model})
    return Judge(named["base-url"], named["judge-model"], max_tokens, concurrency, max_errors)


def _images(with_image: bool, folder: Path | None, file: Path) -> "ImageFolder | None":
    """Where the images that `file` names are; None if the judge does not see them."""
    from perpo_pipeline.evaluate.judge.images import ImageFolder

    if folder is not None and not with_image:
        raise ConfigError(
            "--image-dir has no effect without --with-image",
            fix="add --with-image, or leave it out",
        )
    if folder is not None and not folder.is_dir():
        raise ConfigError(
            "--image-dir is no directory", where=str(folder), fix="give the folder of the images"
        )
    return ImageFolder(folder or file.parent) if with_image else None


def _given_for_asking(
    base_url: str | None, with_image: bool, image_dir: Path | None, thinking: str, tag: str
) -> dict[str, object]:
    """The options that only asking a judge uses; None for one that was not given."""
    return {
        "base-url": base_url,
        "with-image": with_image or None,
        "image-dir": image_dir,
        "thinking": None if thinking == "auto" else thinking,
        "answer-tag": None if tag == "answer" else tag,
    }


def _reading(thinking: str, tag: str) -> "Reading":
    """How the text of a model's answer is found; raises ConfigError."""
    from perpo_pipeline.answers.settings import Reading

    return Reading(**parse_answer(thinking, tag, "first").model_dump())


def _all_of(options: dict[str, Value | None]) -> dict[str, Value]:
    """The options' values; raises if one was not given."""
    missing = [f"--{name}" for name, value in options.items() if value is None]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} must be given", fix="see perpo judge COMMAND --help"
        )
    return {name: value for name, value in options.items() if value is not None}


def _refuse(options: dict[str, object]) -> None:
    """Raise for options that have no effect together with --reviews."""
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given:
        raise ConfigError(
            f"{', '.join(given)} has no effect with --reviews: no judge is asked",
            fix="leave out one of the two",
        )


def _ask(
    task: "Task",
    read: "Callable[[Say], list[Question]]",
    files: dict[str, Path],
    judge: "Judge",
    reading: "Reading",
    out: Path,
    quiet: bool,
) -> None:
    from perpo_pipeline.evaluate.judge.judge_answers import judge_questions
    from perpo_pipeline.run import Console

    console = Console(quiet)
    questions = read(console.say)
    _show(judge_questions(task, questions, files, judge, reading=reading, out=out, console=console))


def _measure(
    task: "Task",
    read: "Callable[[Say], list[Review]]",
    reviews: Path,
    model: str | None,
    out: Path,
    quiet: bool,
) -> None:
    from perpo_pipeline.evaluate.judge.judge_answers import measure_reviews
    from perpo_pipeline.run import Console

    console = Console(quiet)
    _show(
        measure_reviews(
            task, read(console.say), {"reviews": reviews}, model, out=out, console=console
        )
    )


def _show(metrics: "Version") -> None:
    from perpo_pipeline.evaluate.printing import metrics_table

    print(metrics_table(metrics.table().to_pylist()))
