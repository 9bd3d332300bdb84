"""`perpo sample`."""

from pathlib import Path
from typing import Annotated

import typer

from perpo_pipeline.commands.options import (
    DEFAULT_CONFIG,
    AllowStale,
    Config,
    Debug,
    Model,
    Out,
    Prompts,
    Quiet,
    RunName,
    Set,
    open_run,
)
from perpo_pipeline.commands.output import print_paths


def sample(
    config: Config = DEFAULT_CONFIG,
    prompts: Prompts = None,
    model: Model = None,
    adapter: Annotated[
        Path | None, typer.Option(help="adapter artifact, applied to the model")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="auto, transformers, vllm or openai (sample.backend)")
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(help="OpenAI-compatible server to ask, e.g. http://host:8000/v1"),
    ] = None,
    num_samples: Annotated[
        int | None, typer.Option(help="completions per prompt (sample.num_samples)")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="T in softmax(logits / T) (sample.temperature)")
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="tokens of the longest completion (sample.max_new_tokens)"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="seed of the whole run (seed)")] = None,
    sets: Set = None,
    run: RunName = None,
    out: Out = None,
    allow_stale: AllowStale = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw N completions of every prompt from the model.

    Reads the prompts of sample.split and writes samples. Ctrl-C keeps what is
    drawn: the same command goes on from there.

    Example: perpo sample --config configs/demo.yaml --num-samples 20 --temperature 0.5

    Example: perpo sample --config configs/demo.yaml --set sample.top_p=0.9
    """
    from perpo_pipeline.config.overrides import Override
    from perpo_pipeline.sample.sample_prompts import sample as sample_stage

    settings = [
        Override("model.id", model, "--model"),
        Override("sample.backend", backend, "--backend"),
        Override("sample.base_url", base_url, "--base-url"),
        Override("sample.num_samples", num_samples, "--num-samples"),
        Override("sample.temperature", temperature, "--temperature"),
        Override("sample.max_new_tokens", max_new_tokens, "--max-new-tokens"),
        Override("seed", seed, "--seed"),
    ]
    opened = open_run(
        config,
        sets,
        run=run,
        out=out,
        quiet=quiet,
        allow_stale=allow_stale,
        settings=settings,
        inputs={"prompts": prompts, "adapter": adapter},
    )
    print_paths([sample_stage(opened, opened.config.sample.split)])
