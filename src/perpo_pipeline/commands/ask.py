"""`perpo ask`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perpo_pipeline.commands.options import (
    DEFAULT_CONFIG,
    Config,
    Debug,
    Json,
    Model,
    Quiet,
    RunName,
    Set,
    open_run,
)
from perpo_pipeline.commands.output import print_rows
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.lines import cut, width_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from perpo_pipeline.ask.ask_model import Answer
    from perpo_pipeline.ask.question import Question
    from perpo_pipeline.run import Run

COMMAND = "ask"


def ask(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="the image file")],
    question: Annotated[
        str,
        typer.Argument(
            metavar="QUESTION",
            help="what to look for (grounding), or the question word for word",
        ),
    ],
    images: Annotated[
        list[Path] | None,
        typer.Option(
            "--image",
            metavar="FILE",
            help="another image of the same question, after IMAGE; repeatable; each <image> in "
            "QUESTION is the place of the next one, and without any they come first",
        ),
    ] = None,
    box_image: Annotated[
        int | None,
        typer.Option(
            help="the image, from 0, that boxes and --truth refer to; default: the last one"
        ),
    ] = None,
    config: Config = DEFAULT_CONFIG,
    adapter: Annotated[
        str | None,
        typer.Option(help="a trained method of the run (perpo), or an adapter's folder"),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="draw this many answers, as `perpo sample` does; default: one as "
            "`perpo eval` decodes it",
        ),
    ] = None,
    truth: Annotated[
        str | None,
        typer.Option(help='the true box "[x1, y1, x2, y2]" in pixels of the image, or true text'),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="grounding, ocr or vqa; default: from --truth, else the run's prompts"),
    ] = None,
    verbatim: Annotated[
        bool,
        typer.Option("--verbatim", help="ask QUESTION word for word, without an instruction"),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="also write the image with the boxes drawn on it"),
    ] = None,
    model: Model = None,
    sets: Set = None,
    run: RunName = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Ask the run's model one question about one image or several.

    The image, the prompt and the answer go through exactly what the run's stages do with theirs:
    preprocess, chat template, backend and decoding; box_format, box_frame and the settings of the
    answer; score.reward if there is a truth. For grounding, QUESTION is what to look for, and the
    instruction of the box_format is put around it. Without --task the task is that of --truth, else
    that of the run's prompts; a run with several tasks needs --task.

    Example: perpo ask photo.jpg "red circle" --config configs/demo.yaml --adapter perpo

    Example: perpo ask photo.jpg "red circle" --samples 20 --truth "[10,20,110,220]" --out seen.png

    Example: perpo ask before.jpg "What is new in the second picture?" --image after.jpg --task vqa

    Example: perpo ask page.png "What does this page say?" --task ocr
    """
    from perpo_pipeline.ask.ask_model import ask as ask_model
    from perpo_pipeline.ask.ask_model import choose_task, find_adapter
    from perpo_pipeline.ask.question import TASKS, make_question
    from perpo_pipeline.browse.visible import visible
    from perpo_pipeline.config.overrides import Override
    from perpo_pipeline.config.sample import MOST_SAMPLES
    from perpo_pipeline.store.own_files import check_picture, check_picture_size

    if task is not None and task not in TASKS:
        raise ConfigError(f"--task {task}: there is no such task", fix=f"one of {', '.join(TASKS)}")
    if samples is not None and samples > MOST_SAMPLES:
        raise ConfigError(
            f"--samples {samples}: at most {MOST_SAMPLES:,} answers are drawn", fix="give fewer"
        )
    if out is not None:
        check_picture(out, "--out", COMMAND, [image, *(images or ())])
    opened = open_run(
        config,
        sets,
        run=run,
        quiet=quiet,
        settings=[Override("model.id", model, "--model")],
    )
    asked = make_question(
        image,
        question,
        task=task or choose_task(opened, truth),
        truth=truth,
        verbatim=verbatim,
        box_format=opened.config.model.box_format,
        more_images=images or (),
        box_image=box_image,
    )
    if out is not None:
        check_picture_size(out, "--out", (asked.row["width"], asked.row["height"]))
    opened.say(f"ask: {_how_asked(asked, opened, adapter)}")
    answers = ask_model(opened, asked, find_adapter(opened, adapter), samples)
    # Answers are anybody's text: they must not command the terminal, nor turn a line around.
    print_rows(_rows(answers), lambda rows: visible(_shown(answers, asked)), as_json)
    if out is not None:
        _draw(out, asked, answers, opened)


def _how_asked(question: "Question", opened: "Run", adapter: str | None) -> str:
    wrapped = (
        f"with the instruction of box_format {opened.config.model.box_format}"
        if question.is_wrapped
        else "word for word"
    )
    return (
        f"{question.row['prompt']!r} (task {question.task}, {wrapped}; model "
        f"{opened.config.model.id}, {'base' if adapter is None else adapter})"
    )


def _rows(answers: "Sequence[Answer]") -> list[dict[str, Any]]:
    return [
        {
            "answer": number,
            "completion": one.completion,
            "finish_reason": one.finish_reason,
            "read": one.read,
            "shapes": [[value for point in mark.points for value in point] for mark in one.marks],
            "reward": one.reward,
            "parse_ok": one.parse_ok,
        }
        for number, one in enumerate(answers, 1)
    ]


def _shown(answers: "Sequence[Answer]", question: "Question") -> str:
    if len(answers) == 1:
        return "\n".join(_lines_of_one(answers[0], question))
    lines = [_line_of_many(number, one) for number, one in enumerate(answers, 1)]
    rewards = [one.reward for one in answers if one.reward is not None]
    if rewards:
        mean = sum(rewards) / len(rewards)
        lines.append(f"rewards: best {max(rewards):.3f}, mean {mean:.3f}, worst {min(rewards):.3f}")
    return "\n".join(lines)


def _lines_of_one(answer: "Answer", question: "Question") -> list[str]:
    cut_off = " (cut off at max_new_tokens)" if answer.finish_reason == "length" else ""
    lines = [f"answer  {answer.completion}{cut_off}", f"read    {answer.read}"]
    if answer.marks:
        lines[-1] += f" in pixels of {question.image_of_boxes}"
    if answer.reward is not None:
        unread = "" if answer.parse_ok else " (the answer could not be read)"
        lines.append(f"reward  {answer.reward:.3f}{unread}")
    return lines


def _line_of_many(number: int, answer: "Answer") -> str:
    """One answer on one line, cut only where it goes to a terminal."""
    reward = "" if answer.reward is None else f"  {answer.reward:.3f}"
    line = f"{number:>3}{reward}  {answer.read}  <-  {answer.completion}"
    return cut(line, width_of(sys.stdout) or sys.maxsize)


def _draw(out: Path, question: "Question", answers: "Sequence[Answer]", opened: "Run") -> None:
    from perpo_pipeline.ask.ask_model import all_marks
    from perpo_pipeline.drawing.raster import draw
    from perpo_pipeline.store.atomic import write_atomically
    from perpo_pipeline.store.own_files import PICTURES, picture_mark
    from perpo_pipeline.vlm.inputs import prompt_image

    marks = all_marks(question, answers)
    picture = draw(prompt_image(question.row), marks)
    kind, mark = PICTURES[out.suffix.lower()], picture_mark(COMMAND)
    write_atomically(
        out, lambda sink: picture.save(sink, format=kind, exif=mark), "it asks and draws again"
    )
    drawn = f"{len(marks)} shape{'s' * (len(marks) > 1)} drawn" if marks else "nothing to draw"
    opened.say(f"ask: the picture is {out} ({drawn})")
