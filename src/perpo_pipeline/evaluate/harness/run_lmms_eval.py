"""`perpo eval --harness lmms-eval`: runs lmms-eval on a run's models, and takes its results over.

Each task of each model is a run of its own: a kill loses at most one task, and a task that is
finished is not run again. The logs stay in the folder of the `harness` artifact made from them.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perpo_pipeline.config.evaluations import AT, BASE
from perpo_pipeline.config.fingerprints import counted_settings
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.evaluate.harness.lmms_eval_logs import results_files
from perpo_pipeline.evaluate.harness.lmms_eval_program import LmmsEval, failed
from perpo_pipeline.evaluate.harness.logs import LMMS_EVAL
from perpo_pipeline.evaluate.harness.measure_logs import measure
from perpo_pipeline.evaluate.harness.read_logs import read_logs
from perpo_pipeline.run import Run, make
from perpo_pipeline.store.artifacts import MERGED, Version, open_version
from perpo_pipeline.store.writing import Recipe, Writer
from perpo_pipeline.vlm.families import FAMILIES, family_of
from perpo_pipeline.vlm.files import ResolvedModel
from perpo_pipeline.vlm.hub_kernels import named_kernels
from perpo_pipeline.vlm.image_limits import PIXELS, TILES
from perpo_pipeline.vlm.inputs import IDENTITY_CACHE, find_model, model_notes
from perpo_pipeline.vlm.own_code import named_code

STAGE_VERSION = 1
LOGS, OUTPUT = "logs", "lmms-eval.log"
TASK_NAME = re.compile(r"[A-Za-z0-9_.+-]+")
TAKES_DTYPE = ("llava_hf",)
# Settings of the model that count.
OF_THE_MODEL = ("model", "trust_remote_code", "dtype", "quantization", *PIXELS, *TILES)
IMAGE_SIZE = {
    "qwen2_5_vl": {"min_pixels": "min_pixels", "max_pixels": "max_pixels"},
    "qwen3_vl": {"min_pixels": "min_pixels", "max_pixels": "max_pixels"},
    "internvl_hf": {"max_tiles": "max_patches"},
}
"""lmms-eval's argument for each of our limits on the image size, by its class of models."""
INCLUDE_PATH = "--include_path"


@dataclass(frozen=True)
class Asked:
    """The program, and the user's further arguments."""

    program: LmmsEval
    model_arguments: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()


def harness_evaluation(model: str, task: str) -> str:
    """The variant of a task's `harness` and `metrics`: MODEL@lmms-eval-TASK."""
    return f"{model}{AT}{LMMS_EVAL}-{task}"


def read_tasks(text: str) -> tuple[str, ...]:
    """The names in a comma-separated list, each once; raises ConfigError for other text."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if not TASK_NAME.fullmatch(name):
            raise ConfigError(
                f"--tasks: {name!r} is not the name of a task",
                fix="give names of lmms-eval's tasks, separated by commas, without wildcards",
            )
    return names


def run_lmms_eval(run: Run, model: str, task: str, asked: Asked) -> Version:
    """The metrics of one model, `base` or a trained variant, on one task.

    Raises ConfigError if lmms-eval has no class for the model's family, ProcessError if it wrote no
    results, and as `read_logs`.
    """
    resolved, found = find_model(run.config.model, run.scratch)
    model_class = _model_class(resolved)
    _refuse_code(resolved)
    inputs: dict[str, Version] = {}
    if model != BASE:
        place = run.inputs.get("adapter") or run.place("adapter", model)
        inputs["adapter"] = open_version(place, "adapter")
    settings: dict[str, Any] = {
        "harness": LMMS_EVAL,
        "harness_version": asked.program.version,
        "model_class": model_class,
        "task": task,
        "model_arguments": list(asked.model_arguments),
        "arguments": list(asked.arguments),
        "included_sha256": _included(asked.arguments),
        **{name: found[name] for name in OF_THE_MODEL if name in found},
    }
    variant = harness_evaluation(model, task)
    settings = counted_settings("harness", None, settings)
    recipe = Recipe(
        "harness", variant, "eval", STAGE_VERSION, settings, inputs, model_notes(run.config.model)
    )

    def write_scores(writer: Writer) -> None:
        if not results_files(writer.path / LOGS):
            path = _model_folder(run, resolved, inputs, found)
            words = _words(run, path, model_class, task, found, asked, resolved)
            _run(run, writer, variant, words, asked.program)
        measured = measure(read_logs(writer.path / LOGS))
        for name, note in measured.notes.items():
            writer.note(name, note)
        for message in measured.messages:
            run.say(f"eval {variant}: {message}")
        writer.write_part(0, measured.scores)

    made = make(run, recipe, write_scores, out=run.out and run.out / "harness")
    metrics = Recipe("metrics", variant, "eval", STAGE_VERSION, {}, {"harness": made})

    def write_metrics(writer: Writer) -> None:
        writer.write_part(0, measure(read_logs(made.path / LOGS)).metrics)

    return make(run, metrics, write_metrics, out=run.out and run.out / "metrics")


def _model_class(resolved: ResolvedModel) -> str:
    family = family_of(resolved)
    if family.lmms_eval is None:
        known = ", ".join(f"{f.label} ({f.lmms_eval})" for f in FAMILIES.values() if f.lmms_eval)
        raise ConfigError(
            f"lmms-eval has no class that loads models of the family {family.name}",
            where=str(resolved.path),
            fix=f"it has them for {known}; or run a harness yourself on the merged model "
            "(`perpo merge`) and give its logs to `perpo measure harness`",
        )
    return family.lmms_eval


def _refuse_code(resolved: ResolvedModel) -> None:
    """Raise ConfigError for a model that names code: lmms-eval trusts it in some classes (0.7.3:
    qwen3_vl), whatever the run says."""
    if named := [*named_code(resolved.path), *named_kernels(resolved.path)]:
        raise ConfigError(
            f"the model's files name Python code ({', '.join(named)}), and lmms-eval may run it",
            where=str(resolved.path),
            fix="evaluate a copy of the model whose files do not name it; or run a harness "
            "yourself and give its logs to `perpo measure harness`",
        )


def _model_folder(
    run: Run, resolved: ResolvedModel, inputs: Mapping[str, Version], found: Mapping[str, Any]
) -> Path:
    """The folder that lmms-eval loads: the base's, or the merged or dequantised model's."""
    from perpo_pipeline.vlm.merging import merge_to_disk

    cache = run.scratch / IDENTITY_CACHE
    adapter = inputs["adapter"].path if "adapter" in inputs else None
    if adapter is None and resolved.quantization is None:
        return resolved.path
    return merge_to_disk(resolved, adapter, found["dtype"], run.scratch / MERGED, cache).resolve()


def _image_size(model_class: str, resolved: ResolvedModel) -> list[str]:
    """The model arguments for the run's limits; raises ConfigError if the class takes none."""
    names = IMAGE_SIZE.get(model_class, {})
    given = resolved.limits.given()
    if missing := [f"model.{name}" for name in given if name not in names]:
        raise ConfigError(
            f"lmms-eval's class {model_class} cannot limit the size of images, but the run sets "
            f"{' and '.join(missing)}",
            fix="run a harness yourself on a model whose files have it, and give its logs to "
            "`perpo measure harness`",
        )
    return [f"{names[name]}={value}" for name, value in given.items()]


def _words(
    run: Run,
    path: Path,
    model_class: str,
    task: str,
    found: Mapping[str, Any],
    asked: Asked,
    resolved: ResolvedModel,
) -> list[str]:
    device = run.config.model.device
    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    if "," in str(path) or "=" in str(path):
        raise ConfigError(
            "lmms-eval cannot load a model from a path with `,` or `=`", where=str(path)
        )
    loading = [f"pretrained={path}", f"device={device}", f"device_map={device}"]
    if model_class in TAKES_DTYPE:
        loading.append(f"dtype={found['dtype']}")
    loading += _image_size(model_class, resolved)
    model_arguments = ",".join([*loading, *asked.model_arguments])
    words = ["--model", model_class, "--model_args", model_arguments, "--tasks", task]
    return [*words, "--log_samples", *asked.arguments]


def _run(run: Run, writer: Writer, variant: str, words: Sequence[str], program: LmmsEval) -> None:
    """Run lmms-eval into a folder of this process, which becomes LOGS once there are results.

    The lmms-eval of a killed process may still write: into its own folder, which nobody reads.
    """
    for left in writer.path.glob(f"{LOGS}*"):
        shutil.rmtree(left)
    part, output = writer.path / f"{LOGS}-{os.getpid()}", writer.path / OUTPUT
    run.say(f"eval {variant}: lmms-eval {program.version} runs; its output is in {output}")
    try:
        program.run([*words, "--output_path", str(part.resolve())], output)
        if not results_files(part):
            raise failed(output, "exit code 0")
        os.replace(part, writer.path / LOGS)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _included(arguments: Sequence[str]) -> str | None:
    """A hash of the tasks in the folder of --include_path, since they decide what is asked."""
    folder = _value_of(INCLUDE_PATH, arguments)
    if folder is None:
        return None
    if not Path(folder).is_dir():
        raise ConfigError("no such folder of tasks", where=folder, fix="correct --include_path")
    total = hashlib.sha256()
    for file in sorted(Path(folder).rglob("*")):
        if file.suffix in (".yaml", ".yml", ".py", ".json", ".jsonl"):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            total.update(f"{file.relative_to(folder)}\0{digest}\n".encode())
    return total.hexdigest()


def _value_of(name: str, words: Sequence[str]) -> str | None:
    for number, word in enumerate(words):
        if word == name:
            return words[number + 1] if number + 1 < len(words) else ""
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None
