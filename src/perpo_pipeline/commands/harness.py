"""`perpo eval --harness`: its options, and what it runs and prints."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from perpo_pipeline.commands.options import check_one_out
from perpo_pipeline.commands.output import print_paths, print_rows
from perpo_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from perpo_pipeline.run import Run
    from perpo_pipeline.store.artifacts import Version


def check_harness_options(
    harness: str | None,
    tasks: str | None,
    arguments: str,
    python: str | None,
    image_conditioning: bool,
    prompts: Path | None,
) -> None:
    """Raise ConfigError for options that do not go together."""
    if harness is None and (tasks is not None or arguments or python is not None):
        raise ConfigError(
            "--tasks, --harness-args and --harness-python are options of a harness",
            fix="add --harness lmms-eval",
        )
    if harness not in (None, "lmms-eval"):
        raise ConfigError(
            f"--harness {harness}: perpo runs lmms-eval only",
            fix="give lmms-eval; the finished logs of others are read by `perpo measure harness`",
        )
    if harness is not None and tasks is None:
        raise ConfigError("--harness needs --tasks", fix="add --tasks, e.g. --tasks pope")
    if harness is not None and (image_conditioning or prompts is not None):
        raise ConfigError(
            "--harness asks its own questions: it goes neither with --image-conditioning nor with "
            "--prompts",
            fix="leave one of them out",
        )


def run_harness(
    opened: "Run",
    asked: list[str] | None,
    tasks: str,
    arguments: str,
    python: str | None,
    as_json: bool,
) -> None:
    """Run lmms-eval on the models `asked` (None: all) and print their metrics."""
    from perpo_pipeline.evaluate.harness.lmms_eval_program import find_lmms_eval, read_arguments
    from perpo_pipeline.evaluate.harness.run_lmms_eval import (
        Asked,
        harness_evaluation,
        read_tasks,
        run_lmms_eval,
    )
    from perpo_pipeline.evaluate.printing import metrics_table

    models = opened.config.eval_models()
    for name in asked or ():
        if name not in models:
            raise ConfigError(
                f"--evaluation {name}: with --harness it names a model of this run",
                fix=f"choose one of {models}",
            )
    chosen = [model for model in models if not asked or model in asked]
    names = read_tasks(tasks)
    more, others = read_arguments(arguments)
    pairs = [(model, task) for task in names for model in chosen]
    shown = [harness_evaluation(*pair) for pair in pairs]
    check_one_out(shown, opened.out, option="--evaluation and --tasks", what="evaluation")
    wanted = Asked(find_lmms_eval(python), tuple(more), tuple(others))
    versions = []
    for pair in pairs:
        versions.append(run_lmms_eval(opened, *pair, wanted))
        if not as_json:
            opened.say(f"{shown[len(versions) - 1]}:\n{metrics_table(_rows(versions[-1]))}")
    if as_json:
        rows = [{"variant": v.variant, **row} for v in versions for row in _rows(v)]
        print_rows(rows, metrics_table, as_json)
    else:
        print_paths(versions)


def _rows(version: "Version") -> "list[dict[str, Any]]":
    rows: list[dict[str, Any]] = version.table().to_pylist()
    return rows
