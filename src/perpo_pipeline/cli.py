"""The command line: one short function a command; heavy imports only inside the stage that runs."""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perpo_pipeline.errors import ConfigError, PerpoError

if TYPE_CHECKING:
    from perpo_pipeline.artifacts import Version
    from perpo_pipeline.stage import Run

EXIT_BUG, EXIT_USER_ERROR, EXIT_INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="perpo",
    help="Align a vision-language model with what is in the image (PerPO, arXiv:2502.04371).\n\n"
    "Stages: prepare, sample, score, filter, train, eval, report; each reads its section of one "
    "YAML file and the artifacts of the stage before it.\n\n"
    "Example: perpo sample --config configs/demo.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Config = Annotated[Path, typer.Option("--config", help="the run's YAML file")]
RunName = Annotated[
    str | None, typer.Option("--run", help="name of the run, instead of the file's")
]
Out = Annotated[Path | None, typer.Option("--out", help="directory to write to, outright")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress bars (for logs)")]
Debug = Annotated[bool, typer.Option("--debug", help="show the traceback of an error")]
Variant = Annotated[str | None, typer.Option("--variant", help="one only; default: all of the run")]
Prompts = Annotated[Path | None, typer.Option(help="prompts artifact, instead of the run's")]
Samples = Annotated[Path | None, typer.Option(help="samples artifact, instead of the run's")]
Scores = Annotated[Path | None, typer.Option(help="scores artifact, instead of the run's")]
Preferences = Annotated[Path | None, typer.Option(help="preferences artifact, not the run's")]
Model = Annotated[str | None, typer.Option(help="hub id, directory, or `testbed`")]
DEFAULT_CONFIG = Path("configs/demo.yaml")


def _open_run(
    config: Path,
    *,
    run: str | None = None,
    out: Path | None = None,
    quiet: bool = False,
    settings: dict[str, Any] | None = None,
    inputs: dict[str, Path | None] | None = None,
) -> "Run":
    """Load the run's file under the flags that were given (None: not given)."""
    from perpo_pipeline.config import load_config
    from perpo_pipeline.stage import Run

    overrides = {k: v for k, v in {"run": run, **(settings or {})}.items() if v is not None}
    given = {k: v for k, v in (inputs or {}).items() if v is not None}
    return Run(load_config(config, overrides), out=out, inputs=given, quiet=quiet)


def _each(names: list[str], variant: str | None, out: Path | None) -> list[str]:
    """The variants that a command runs over: one by name, or all."""
    chosen = names if variant is None else [variant]
    if variant is not None and variant not in names:
        raise ConfigError(f"no variant '{variant}' in this run", fix=f"choose one of {names}")
    if out is not None and len(chosen) > 1:
        raise ConfigError(f"--out is one directory, for {len(chosen)} variants {chosen}",
                          fix="choose one with --variant")  # fmt: skip
    return chosen


def _print_paths(versions: "list[Version]") -> None:
    for version in versions:
        print(version.path)


@app.command()
def prepare(
    source: Annotated[
        str | None, typer.Argument(help="testbed or jsonl; default: the file's")
    ] = None,
    path: Annotated[Path | None, typer.Argument(help="the jsonl file")] = None,
    config: Config = DEFAULT_CONFIG,
    variant: Annotated[str | None, typer.Option("--variant", help="the split")] = None,
    task: Annotated[str | None, typer.Option(help="of jsonl rows that name none")] = None,
    image_root: Annotated[Path | None, typer.Option(help="folder of the images")] = None,
    num_prompts: Annotated[int | None, typer.Option(help="how many to render (testbed)")] = None,
    run: RunName = None,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Turn a dataset into prompts: image, instruction and truth, with stable keys.

    Example: perpo prepare --config configs/demo.yaml --variant train

    Example: perpo prepare jsonl my/train.jsonl --task grounding --variant train
    """
    from perpo_pipeline.prepare.stage import prepare as prepare_stage

    settings: dict[str, Any] = {}
    if source is None and (task or image_root):
        raise ConfigError("--task and --image-root belong to a jsonl file",
                          fix="perpo prepare jsonl FILE --task ...")  # fmt: skip
    if num_prompts is not None and source is None and variant is None:
        raise ConfigError("--num-prompts is of one split", fix="choose it with --variant")
    if source is not None:
        split = variant or "train"
        section = {"source": source, "path": path and str(path), "task": task,
                   "image_root": image_root and str(image_root),
                   "num_prompts": num_prompts}  # fmt: skip
        settings[f"prepare.{split}"] = {k: v for k, v in section.items() if v is not None}
        variant = split
    elif num_prompts is not None:
        settings[f"prepare.{variant}.num_prompts"] = num_prompts
    opened = _open_run(config, run=run, out=out, quiet=quiet, settings=settings)
    splits = _each(list(opened.config.prepare), variant, out)
    _print_paths([prepare_stage(opened, split) for split in splits])


@app.command()
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
    from perpo_pipeline.sample.stage import sample as sample_stage

    settings = {"model.id": model, "sample.backend": backend, "sample.base_url": base_url,
                "sample.served_model": served_model,
                "sample.num_gpus": num_gpus, "sample.preview_reward": preview_reward,
                "sample.max_errors": max_errors, "sample.num_samples": num_samples,
                "sample.temperature": temperature, "sample.max_new_tokens": max_new_tokens,
                "seed": seed}  # fmt: skip
    opened = _open_run(config, run=run, out=out, quiet=quiet, settings=settings,
                       inputs={"prompts": prompts, "adapter": adapter})  # fmt: skip
    _print_paths([sample_stage(opened, opened.config.sample.split)])


@app.command()
def score(
    config: Config = DEFAULT_CONFIG,
    samples: Samples = None,
    prompts: Prompts = None,
    reward: Annotated[str | None, typer.Option(help="auto, iou or edit_similarity")] = None,
    run: RunName = None,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure every completion against the truth: a reward in [0, 1].

    Example: perpo score --config configs/demo.yaml --reward iou
    """
    from perpo_pipeline.score import score as score_stage

    opened = _open_run(config, run=run, out=out, quiet=quiet, settings={"score.reward": reward},
                       inputs={"samples": samples, "prompts": prompts})  # fmt: skip
    _print_paths([score_stage(opened, opened.config.sample.split)])


@app.command(name="filter")
def filter_command(
    config: Config = DEFAULT_CONFIG,
    scores: Scores = None,
    samples: Samples = None,
    min_margin: Annotated[float | None, typer.Option(help="max reward - min reward")] = None,
    max_lists: Annotated[int | None, typer.Option(help="cap on the lists kept")] = None,
    run: RunName = None,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Keep the lists with a wide margin; those dropped stay beside them, with the reason.

    Example: perpo filter --config configs/demo.yaml --min-margin 0.6
    """
    from perpo_pipeline.filter import filter_lists

    settings = {"filter.min_margin": min_margin, "filter.max_lists": max_lists}
    opened = _open_run(config, run=run, out=out, quiet=quiet, settings=settings,
                       inputs={"scores": scores, "samples": samples})  # fmt: skip
    _print_paths([filter_lists(opened, opened.config.sample.split)])


@app.command()
def train(
    config: Config = DEFAULT_CONFIG,
    variant: Variant = None,
    method: Annotated[str | None, typer.Option(help="perpo, lipo, lipo-lambda, dpo, sft")] = None,
    preferences: Preferences = None,
    model: Model = None,
    beta: Annotated[float | None, typer.Option(help="scale of the implicit score")] = None,
    gamma: Annotated[float | None, typer.Option(help="exponent of the reward gap")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="peak of the schedule")] = None,
    forward: Annotated[
        str | None, typer.Option(help="auto, shared-prefix, or concatenated (slow, safe)")
    ] = None,
    max_tokens_per_step: Annotated[
        int | None, typer.Option(help="tokens a forward pass; lower it when memory runs out")
    ] = None,
    drop_too_long: Annotated[
        bool, typer.Option("--drop-too-long", help="leave out lists longer than the context")
    ] = False,
    run: RunName = None,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train an adapter on the kept lists; resumes from the last whole checkpoint.

    Example: perpo train --config configs/demo.yaml --method perpo
    """
    from perpo_pipeline.train.stage import train as train_stage

    variant = variant or method
    if variant is None and (beta or gamma is not None or learning_rate):
        raise ConfigError("--beta, --gamma and --learning-rate are of one variant",
                          fix="choose it with --variant or --method")  # fmt: skip
    own = {"method": method, "beta": beta, "gamma": gamma, "learning_rate": learning_rate}
    settings: dict[str, Any] = {"model.id": model, "train.forward": forward,
                                "train.max_tokens_per_step": max_tokens_per_step,
                                "train.drop_too_long": drop_too_long or None}  # fmt: skip
    if variant is not None:
        settings |= {f"train.methods.{variant}.{k}": v for k, v in own.items()}
    opened = _open_run(config, run=run, out=out, quiet=quiet, settings=settings,
                       inputs={"preferences": preferences})  # fmt: skip
    names = _each(list(opened.config.train.variants()), variant, out)
    _print_paths([train_stage(opened, name) for name in names])


@app.command(name="eval")
def eval_command(
    config: Config = DEFAULT_CONFIG,
    variant: Variant = None,
    prompts: Prompts = None,
    adapter: Annotated[Path | None, typer.Option(help="adapter artifact, not the run's")] = None,
    model: Model = None,
    run: RunName = None,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Evaluate the base and every adapter by greedy decoding; metrics with 95 % intervals.

    Example: perpo eval --config configs/demo.yaml --variant perpo
    """
    from perpo_pipeline.evaluate.stage import evaluate

    if adapter is not None and variant in (None, "base", "base-other-image"):
        raise ConfigError("--adapter is of one trained variant",
                          fix="name it with --variant, e.g. perpo")  # fmt: skip
    opened = _open_run(config, run=run, out=out, quiet=quiet, settings={"model.id": model},
                       inputs={"prompts": prompts, "adapter": adapter})  # fmt: skip
    names = _each(opened.config.eval_variants(), variant, out)
    _print_paths([evaluate(opened, name) for name in names])


@app.command()
def report(
    config: Config = DEFAULT_CONFIG,
    run: RunName = None,
    out: Out = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write one self-contained HTML page that shows what changed.

    Example: perpo report --config configs/demo.yaml
    """
    from perpo_pipeline.report.stage import report as report_stage

    opened = _open_run(config, run=run, out=out, quiet=quiet)
    print(report_stage(opened).path / "report.html")


@app.command()
def inspect(
    directory: Annotated[Path, typer.Argument(help="an artifact, or one version of it")],
    rows: Annotated[int, typer.Option(help="rows to show")] = 3,
    verify: Annotated[
        bool, typer.Option("--verify", help="check the sha256 of every file")
    ] = False,
    debug: Debug = False,
) -> None:
    """Print an artifact: rows, schema version, lineage, settings, a few rows.

    Example: perpo inspect data/demo/preferences/train
    """
    from perpo_pipeline.inspect import describe

    print(describe(directory, rows=rows, verify=verify))


@app.command()
def doctor(debug: Debug = False) -> None:
    """Print what this machine can run, and the command that installs what is missing.

    Example: perpo doctor
    """
    from perpo_pipeline.doctor import examine

    print(examine())


@app.command()
def gc(
    config: Config = DEFAULT_CONFIG,
    yes: Annotated[bool, typer.Option("--yes", help="remove them; otherwise only list")] = False,
    run: RunName = None,
    debug: Debug = False,
) -> None:
    """List (or remove, with --yes) versions that no `current` file leads to.

    Example: perpo gc --config configs/demo.yaml --yes
    """
    from perpo_pipeline.inspect import collect_garbage

    opened = _open_run(config, run=run)
    for path in collect_garbage(opened.config.run_dir, remove=yes):
        print(("removed " if yes else "unused  ") + str(path))


@app.command(hidden=True)
def plan(config: Config = DEFAULT_CONFIG, debug: Debug = False) -> None:
    """Print the run's variants as Make variables (read by stages/*.mk).

    Example: perpo plan --config configs/demo.yaml
    """
    from perpo_pipeline.prepare.sources import JsonlSource

    run = _open_run(config).config
    sources = [str(s.path) for s in run.prepare.values() if isinstance(s, JsonlSource)]
    print(f"DATA := {run.run_dir}")
    print(f"SPLITS := {' '.join(run.prepare)}")
    print(f"SAMPLE_SPLIT := {run.sample.split}")
    print(f"EVAL_SPLIT := {run.eval.split}")
    print(f"ADAPTERS := {' '.join(run.train.variants())}")
    print(f"EVALUATED_ADAPTERS := {' '.join(m for m in run.eval_models() if m != 'base')}")
    print(f"EVALUATIONS := {' '.join(run.eval_variants())}")
    print(f"SOURCES := {' '.join(sources)}")


def main(argv: list[str] | None = None) -> None:
    """Run the command line; a user's error is one message and exit code 2."""
    arguments = sys.argv[1:] if argv is None else argv
    command: Callable[..., Any] = app
    try:
        command(args=arguments)
    except PerpoError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        print(f"perpo: error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except SystemExit as ended:  # typer has turned Ctrl-C into this
        if ended.code == EXIT_INTERRUPTED:
            print("perpo: interrupted; the same command goes on from here", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
