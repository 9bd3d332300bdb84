"""`perpo score`."""

import math
from typing import Annotated

import typer

from perpo_pipeline.commands.options import (
    DEFAULT_CONFIG,
    AllowStale,
    Config,
    Debug,
    Out,
    Prompts,
    Quiet,
    RunName,
    Samples,
    Set,
    open_run,
)
from perpo_pipeline.commands.output import print_paths
from perpo_pipeline.errors import ConfigError


def score(
    config: Config = DEFAULT_CONFIG,
    samples: Samples = None,
    prompts: Prompts = None,
    reward: Annotated[
        str | None,
        typer.Option(help="a reward, or several as NAME=WEIGHT,NAME=WEIGHT (score.reward)"),
    ] = None,
    sets: Set = None,
    run: RunName = None,
    out: Out = None,
    allow_stale: AllowStale = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure every completion against the ground truth.

    The measure is a reward in [0, 1]. Reads samples and the truth in their prompts, and writes
    scores.

    \b
    one box   iou, giou, iou_steps, iou_steps_strict
    points    point_in_box, point_gaussian; point_closeness (to a true point)
    outlines  polygon_iou
    boxes     set_iou, detection_f1, detection_f1_mean, box_count; any number,
              none included
    texts     edit_similarity, character_accuracy, word_accuracy, token_f1, exact_match
    numbers   count_match, numeric_closeness
    auto      chooses by the prompt's task
    your own  package.module:function (the manual's page "rewards")

    Several rewards are added up by their weights.

    Example: perpo score --config configs/demo.yaml --reward iou

    Example: perpo score --config configs/demo.yaml --reward iou=0.7,my_rewards:short=0.3
    """
    from perpo_pipeline.config.overrides import Override
    from perpo_pipeline.score.score_answers import score as score_stage

    opened = open_run(
        config,
        sets,
        run=run,
        out=out,
        quiet=quiet,
        allow_stale=allow_stale,
        settings=[Override("score.reward", parse_reward(reward), "--reward")],
        inputs={"samples": samples, "prompts": prompts},
    )
    print_paths([score_stage(opened, opened.config.sample.split)])


def parse_reward(text: str | None) -> str | dict[str, float] | None:
    """Read `--reward`: a name, or `name=weight,name=weight`; raises ConfigError."""
    if text is None or "=" not in text:
        return text
    weights: dict[str, float] = {}
    for entry in text.split(","):
        name, _, weight = entry.rpartition("=")
        try:
            number = float(weight)
        except ValueError:
            number = 0.0
        if not name or not 0 < number < math.inf or name in weights:
            raise ConfigError(
                f"--reward {text!r} cannot be read at {entry!r}",
                fix="give each name once, with a positive weight: --reward iou=0.7,token_f1=0.3",
            )
        weights[name] = number
    return weights
