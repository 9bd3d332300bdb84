"""`perpo sample`, `score` and `filter`: from prompts to lists."""

from pathlib import Path
from typing import Annotated

import typer

from perpo_pipeline.commands.options import (
    DEFAULT_CONFIG,
    Config,
    Debug,
    Model,
    Out,
    Prompts,
    Quiet,
    RunName,
    Samples,
    Scores,
    open_run,
    print_paths,
)


def sample(
    config: Config = DEFAULT_CONFIG,
    prompts: Prompts = None,
    model: Model = None,
    adapter: Annotated[Path | None, typer.Option(help="adapter to sample with")] = None,
    backend: Annotated[str | None, typer.Option(help="auto, transformers, vllm or openai")] = None,
    base_url: Annotated[
        str | None, typer.Option(help="of an OpenAI-compatible server, e.g. http://host:8000/v1")
    ] = None,
    served_model: Annotated[
        str | None, typer.Option(help="the model's name at the server; default: the model's id")
    ] = None,
    num_gpus: Annotated[int | None, typer.Option(help="processes, one a GPU")] = None,
    engine: Annotated[str | None, typer.Option(help="local, or ray: many machines")] = None,
    num_actors: Annotated[int | None, typer.Option(help="of Ray; default: one a GPU")] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="auto or host:port; default: a cluster on this machine")
    ] = None,
    preview_reward: Annotated[
        str | None, typer.Option(help="iou or edit_similarity: show its running mean")
    ] = None,
    max_errors: Annotated[int | None, typer.Option(help="prompts that may fail")] = None,
    num_samples: Annotated[int | None, typer.Option(help="completions a prompt")] = None,
    temperature: Annotated[float | None, typer.Option(help="of softmax(logits / T)")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="longest completion")] = None,
    seed: Annotated[int | None, typer.Option(help="of the run")] = None,
    run: RunName = None,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw N completions of every prompt from the model; resumes where it was stopped.

    Example: perpo sample --config configs/demo.yaml --num-samples 20 --temperature 0.5
    """
    from perpo_pipeline.sample.sample_prompts import sample as sample_stage

    settings = {
        "model.id": model,
        "sample.backend": backend,
        "sample.base_url": base_url,
        "sample.served_model": served_model,
        "sample.num_gpus": num_gpus,
        "sample.engine": engine,
        "sample.num_actors": num_actors,
        "sample.ray_address": ray_address,
        "sample.preview_reward": preview_reward,
        "sample.max_errors": max_errors,
        "sample.num_samples": num_samples,
        "sample.temperature": temperature,
        "sample.max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    opened = open_run(
        config,
        run=run,
        out=out,
        quiet=quiet,
        settings=settings,
        inputs={"prompts": prompts, "adapter": adapter},
    )
    print_paths([sample_stage(opened, opened.config.sample.split)])


def score(
    config: Config = DEFAULT_CONFIG,
    samples: Samples = None,
    prompts: Prompts = None,
    reward: Annotated[
        str | None, typer.Option(help="one or more of these; default: the file's")
    ] = None,
    run: RunName = None,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure every completion against the truth: a reward in [0, 1].

    Rewards of boxes: iou, point_in_box, set_iou (several boxes), polygon_iou; of texts:
    edit_similarity, character_accuracy, word_accuracy, token_f1, exact_match; of numbers:
    count_match, numeric_closeness. `auto` chooses by the task. Your own is
    package.module:function (README, 'Scoring'); several are added up by their weights.

    Example: perpo score --config configs/demo.yaml --reward iou=0.7,my_rewards:short=0.3

    Example: perpo score --config configs/demo.yaml --reward iou
    """
    from perpo_pipeline.config.run import parse_reward
    from perpo_pipeline.score.score_answers import score as score_stage

    settings = {"score.reward": parse_reward(reward)}
    opened = open_run(
        config,
        run=run,
        out=out,
        quiet=quiet,
        settings=settings,
        inputs={"samples": samples, "prompts": prompts},
    )
    print_paths([score_stage(opened, opened.config.sample.split)])


def filter_command(
    config: Config = DEFAULT_CONFIG,
    scores: Scores = None,
    samples: Samples = None,
    min_margin: Annotated[float | None, typer.Option(help="max reward - min reward")] = None,
    max_margin: Annotated[float | None, typer.Option(help="the same, at most")] = None,
    list_size: Annotated[
        int | None, typer.Option(help="the first so many of the N samples")
    ] = None,
    drop_unparsed: Annotated[
        bool, typer.Option("--drop-unparsed", help="leave out answers that could not be read")
    ] = False,
    equal_datasets: Annotated[
        bool, typer.Option("--equal-datasets", help="as many lists of every dataset")
    ] = False,
    max_lists: Annotated[int | None, typer.Option(help="cap on the lists kept")] = None,
    strategy: Annotated[
        str | None, typer.Option(help="lists, or m3po: one hard pair of each")
    ] = None,
    run: RunName = None,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Keep the lists with a wide margin; those dropped stay beside them, with the reason.

    Example: perpo filter --config configs/demo.yaml --min-margin 0.6
    """
    from perpo_pipeline.filter.filter_lists import filter_lists

    settings = {
        "filter.min_margin": min_margin,
        "filter.max_margin": max_margin,
        "filter.list_size": list_size,
        "filter.drop_unparsed": drop_unparsed or None,
        "filter.equal_datasets": equal_datasets or None,
        "filter.max_lists": max_lists,
        "filter.strategy": strategy,
    }
    opened = open_run(
        config,
        run=run,
        out=out,
        quiet=quiet,
        settings=settings,
        inputs={"scores": scores, "samples": samples},
    )
    print_paths([filter_lists(opened, opened.config.sample.split)])
