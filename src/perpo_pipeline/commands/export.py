"""`perpo export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perpo_pipeline import advice
from perpo_pipeline.commands.options import (
    DEFAULT_CONFIG,
    AllowStale,
    Config,
    Debug,
    Preferences,
    Prompts,
    Quiet,
    RunName,
    Set,
    choose_names,
    open_run,
)
from perpo_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from perpo_pipeline.run import Run


def export(
    to: Annotated[
        str,
        typer.Option(
            help="what the folder is for: trl, trl-ranked, lists, llamafactory, ms-swift, sft, grpo"
        ),
    ],
    out: Annotated[Path, typer.Option(help="folder to write; must be empty or new")],
    config: Config = DEFAULT_CONFIG,
    split: Annotated[str, typer.Option(help="the split whose lists or prompts are exported")] = (
        "train"
    ),
    pairs: Annotated[
        str | None,
        typer.Option(
            help="best-worst: one pair of each list (the default); all: every two completions of a "
            "list whose rewards differ"
        ),
    ] = None,
    min_margin: Annotated[
        float | None,
        typer.Option(help="keep pairs whose rewards differ by at least this much; default: 0"),
    ] = None,
    embed_images: Annotated[
        bool,
        typer.Option("--embed-images", help="put the images into the folder, not only their paths"),
    ] = False,
    push_to_hub: Annotated[
        str | None,
        typer.Option(help="upload as this dataset; the token comes from the login or HF_TOKEN"),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="with --push-to-hub: upload to a private repository")
    ] = False,
    preferences: Preferences = None,
    prompts: Prompts = None,
    sets: Set = None,
    run: RunName = None,
    allow_stale: AllowStale = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a run's lists as a dataset for another training tool.

    trl, llamafactory and ms-swift are pairs for DPO in the layout of that tool; trl-ranked and
    lists are whole lists with rewards; sft is the best completion of each list; grpo is the
    prompts with their truths. Reads preferences (grpo: prompts). Writes a folder with a dataset
    card, whole or not at all, and prints its path.

    Example: perpo export --to trl --out exports/trl --config configs/demo.yaml

    Example: perpo export --to llamafactory --out exports/factory --pairs all --min-margin 0.4
    """
    from perpo_pipeline.export.export_run import Request
    from perpo_pipeline.export.export_run import export as export_run
    from perpo_pipeline.hub import check_can_push, push

    if private and push_to_hub is None:
        raise ConfigError("--private needs --push-to-hub", fix="give both, or neither")
    if push_to_hub is not None and not embed_images:
        raise ConfigError(
            "--push-to-hub without --embed-images would upload paths of this machine",
            fix="add --embed-images",
        )
    request = Request(to, pairs, min_margin, embed_images)
    request.check()
    reads_prompts = request.target.needs == "prompts"
    unread = {"preferences": preferences} if reads_prompts else {"prompts": prompts}
    for name in (name for name, given in unread.items() if given is not None):
        raise ConfigError(
            f"--{name} changes nothing with --to {to}",
            fix="leave it out" if reads_prompts else "leave it out: prompts are those of the lists",
        )
    if push_to_hub is not None:
        check_can_push(push_to_hub)
    opened = open_run(
        config,
        sets,
        run=run,
        quiet=quiet,
        inputs={"preferences": preferences, "prompts": prompts},
        allow_stale=allow_stale,
    )
    choose_names(list(opened.config.prepare), split, None, option="--split", what="split")
    if not reads_prompts and preferences is None:
        _check_has_lists(opened, split)
    export_run(opened, split, out, request)
    if push_to_hub is not None:
        message = f"Exported by perpo for {to}"
        place = push(
            out, push_to_hub, kind="dataset", private=private, quiet=quiet, message=message
        )
        opened.say(f"export: pushed to {place}")
    print(out)


def _check_has_lists(run: "Run", split: str) -> None:
    """Raise ConfigError for a split of which there are no lists, and no command makes any as the
    run's file stands."""
    sampled = run.config.sample.split
    if split != sampled and not run.place("preferences", split).is_dir():
        others = advice.command("run", "--to", "filter", "--set", f"sample.split={split}")
        raise ConfigError(
            f"--split {split}: there are no lists of it; those of this run are of {sampled} "
            "(sample.split)",
            fix=f"choose --split {sampled}; or make lists of {split}: {others}",
        )
