"""`perpo train`: preferences and a model -> the adapter artifact (trained weights and log)."""

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perpo_pipeline.adapters import read_record, write_record
from perpo_pipeline.artifacts import Recipe, Version, Writer, adopt_files, input_of
from perpo_pipeline.config import TrainSettings
from perpo_pipeline.errors import ArtifactError, ConfigError, InputError
from perpo_pipeline.model_inputs import (
    context_length,
    count_row_tokens,
    encode_row,
    identify_model,
    model_notes,
    open_model,
)
from perpo_pipeline.schemas import ADAPTER_LOG
from perpo_pipeline.stage import Run, make
from perpo_pipeline.train.integrations import check_installed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from perpo_pipeline.models import Vlm
    from perpo_pipeline.train.lists import Forward, TrainingList

STAGE_VERSION = 2
PROMPT_COLUMNS = [
    "prompt_id", "task", "image", "image_sha256", "width", "height", "prompt", "gt_text", "gt_box",
    "gt_boxes",
]  # fmt: skip
LOG_COLUMNS = [name for name in ADAPTER_LOG.columns.names if name != "step"]
NO_SPACE_BYTES = 2**20
SHOWN = 5  # prompt_ids in a message


def train(run: Run, variant: str) -> Version:
    """Train one variant (a method with its settings) on the run's preferences."""
    _check_one_process()
    settings = run.config.train.variants()[variant]
    preferences = run.latest("preferences", run.config.sample.split)
    prompts = input_of(preferences, "prompts")
    resolved, model_settings = identify_model(run.config.model, run.scratch)
    counted = {**settings.result_settings(), **model_settings}
    if settings.method == "sft":
        counted |= {"box_format": run.config.model.box_format,
                    "box_frame": run.config.model.box_frame}  # fmt: skip
    recipe = Recipe("adapter", variant, "train", STAGE_VERSION, counted,
                    {"preferences": preferences, "prompts": prompts},
                    notes=model_notes(run.config.model))  # fmt: skip

    def work(writer: Writer) -> Mapping[str, Any]:
        if not writer.has_part(0):
            check_installed(settings.log_to)
            vlm = open_model(run.config.model, resolved, model_settings, run.scratch)
            with _full_disk_explained(writer.path):
                log = _train(run, vlm, preferences, prompts, settings, model_settings, writer)
            writer.write_part(0, log)
        shutil.rmtree(writer.path / "checkpoints", ignore_errors=True)
        record = read_record(writer.path)
        return {"steps": writer.read_part(0).num_rows, "lists": record["lists"],
                "dropped_too_long": len(record["dropped_too_long"])}  # fmt: skip

    return make(run, recipe, work, out=run.out)


def _check_one_process() -> None:
    """Several processes would multiply the batch that the fingerprint names."""
    world_size = os.environ.get("WORLD_SIZE", "1")
    if world_size != "1":
        raise ConfigError(
            f"`perpo train` was started in {world_size} processes; it runs in one so far",
            fix="start it without torchrun",
        )


def _train(
    run: Run, vlm: "Vlm", preferences: Version, prompts: Version, settings: TrainSettings,
    model_settings: Mapping[str, Any], writer: Writer,
) -> list[dict[str, Any]]:  # fmt: skip
    """Train, put what was trained into the version, return the rows of the log."""
    from perpo_pipeline.train.engine import ready_model
    from perpo_pipeline.train.lists import ground_truth_list, ranked_lists
    from perpo_pipeline.train.trainer import fit

    preprocess, variant = model_settings["preprocess"], writer.recipe.variant
    forward = _choose_forward(run, vlm, settings)
    ready_model(vlm, forward, settings)
    lists = ranked_lists(*_rows_and_prompts(preferences, prompts))
    sampled = lists
    if settings.method == "sft":
        lists = [ground_truth_list(entry, vlm, run.config.model) for entry in lists]
    lists, dropped = _that_fit(run, vlm, lists, preprocess, drop=settings.drop_too_long)
    _check_forward(run, vlm, _same_prompt(sampled, lists[0]), preprocess, settings, forward)
    if settings.method != "sft":
        lists = _with_reference(run, vlm, preferences, lists, settings, model_settings, forward)
    trainer, history = fit(
        vlm, lists, settings, preprocess, forward, writer.path / "checkpoints",
        name=f"train {variant}", quiet=run.quiet,
    )  # fmt: skip
    staging = writer.path / "checkpoints" / "trained"
    trainer.save_trained(staging)
    adopt_files(staging, writer)
    record = {"base_identity": vlm.identity, "base_model": run.config.model.id,
              "lists": len(lists), "dropped_too_long": dropped}  # fmt: skip
    write_record(writer.path, record)
    return [
        {"step": entry["step"], **{name: entry.get(name) for name in LOG_COLUMNS}}
        for entry in history
    ]


def _choose_forward(run: Run, vlm: "Vlm", settings: TrainSettings) -> "Forward":
    from perpo_pipeline.train.engine import choose_forward

    forward = choose_forward(vlm, settings.forward)
    if settings.forward == "auto" and forward == "concatenated":
        why = (
            "its layers are not all full attention" if vlm.family.known or not vlm.full_attention
            else "the family was never tried; `forward: shared-prefix` tries it, checked at start"
        )  # fmt: skip
        run.say(
            f"train: one full row a completion (forward: concatenated) for this "
            f"'{vlm.family.name}' model, which is slow: {why}"
        )
    return forward


def _rows_and_prompts(
    preferences: Version, prompts: Version
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """The preferences, and by its id the prompt of each."""
    rows = preferences.table().to_pylist()
    wanted = {row["prompt_id"] for row in rows}
    by_id = {
        row["prompt_id"]: row
        for part in prompts.batches(columns=PROMPT_COLUMNS)
        for row in part.to_pylist()
        if row["prompt_id"] in wanted
    }
    return rows, by_id


def _same_prompt(lists: "Sequence[TrainingList]", entry: "TrainingList") -> "TrainingList":
    """The sampled list of the prompt of `entry` (for SFT that one holds the truth alone)."""
    wanted = entry.prompt["prompt_id"]
    return next(one for one in lists if one.prompt["prompt_id"] == wanted)


def _check_forward(
    run: Run, vlm: "Vlm", entry: "TrainingList", preprocess: str, settings: TrainSettings,
    forward: "Forward",
) -> None:  # fmt: skip
    """One list of the run against another way to the same numbers; InputError where they differ."""
    from perpo_pipeline.train.engine import memory_explained
    from perpo_pipeline.train.self_check import check_own_head, check_shared_prefix
    from perpo_pipeline.train.shared_prefix import CompletionList

    encoded = CompletionList(encode_row(vlm, entry.prompt, preprocess), entry.completions)
    if not vlm.family.known:
        with memory_explained(settings):
            check_own_head(vlm, encoded)
    if forward == "concatenated":
        return
    with memory_explained(settings):
        found = check_shared_prefix(vlm, encoded, max_tokens=settings.max_tokens_per_step)
    run.say(f"train: self-check passed; {found}")


def _that_fit(
    run: Run, vlm: "Vlm", lists: "Sequence[TrainingList]", preprocess: str, *, drop: bool
) -> "tuple[list[TrainingList], list[str]]":
    """The lists that the model's context holds, and the prompt_ids of the longer ones.

    Never cut: a list without its end, or an image without some of its tokens, is another list.
    """
    limit = context_length(vlm)
    lengths = {
        entry.prompt["prompt_id"]: count_row_tokens(vlm, entry.prompt, preprocess)
        + max(map(len, entry.completions))
        for entry in run.progress(lists, "lengths")
    }
    too_long = [p for p, length in lengths.items() if limit is not None and length > limit]
    shown = ", ".join(f"{p} ({lengths[p]} tokens)" for p in too_long[:SHOWN])
    shown += ", ..." if len(too_long) > SHOWN else ""
    if too_long and (not drop or len(too_long) == len(lists)):
        raise InputError(
            f"{len(too_long)} of {len(lists)} lists are longer than the model's context of "
            f"{limit} tokens", where=f"prompts {shown}",
            fix="lower sample.max_new_tokens, or leave them out with --drop-too-long",
        )  # fmt: skip
    if too_long:
        run.say(f"train: dropped {len(too_long)} lists longer than {limit} tokens: {shown}")
    return [entry for entry in lists if entry.prompt["prompt_id"] not in set(too_long)], too_long


def _with_reference(
    run: Run, vlm: "Vlm", preferences: Version, lists: "Sequence[TrainingList]",
    settings: TrainSettings, model_settings: Mapping[str, Any], forward: "Forward",
) -> "list[TrainingList]":  # fmt: skip
    """The lists with the base model's log-probabilities; for DPO best and worst alone."""
    from perpo_pipeline.train.lists import best_against_worst, with_reference
    from perpo_pipeline.train.reference import make_reference

    reference = make_reference(
        run, vlm, preferences, lists, settings, model_settings, forward,
        place=run.out / "reference" if run.out else run.place("reference", preferences.variant),
    )  # fmt: skip
    logps = reference.table().to_pydict()
    by_prompt = dict(zip(logps["prompt_id"], logps["ref_logps"], strict=True))
    known = with_reference(lists, by_prompt)
    return [best_against_worst(entry) for entry in known] if settings.method == "dpo" else known


@contextmanager
def _full_disk_explained(path: Path) -> "Iterator[None]":
    """Checkpoints are written by libraries that wrap the system's error in their own."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if shutil.disk_usage(path).free > NO_SPACE_BYTES and "No space left" not in str(error):
            raise
        raise ArtifactError(
            "the disk is full", where=str(path),
            fix="free some space, then run the same command: it goes on after the last checkpoint",
        ) from error  # fmt: skip
