"""`perpo train`: preferences and a model -> the adapter artifact (trained weights and log)."""

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perpo_pipeline.config.fingerprints import box_settings, counted_settings
from perpo_pipeline.config.train import TrainSettings
from perpo_pipeline.errors import (
    ArtifactError,
    ConfigError,
    InputError,
    LostContactError,
    first_line,
)
from perpo_pipeline.machine import compute_on_cpu
from perpo_pipeline.run import Run, make
from perpo_pipeline.store.artifacts import Version, input_of, open_version
from perpo_pipeline.store.schemas import ADAPTER_LOG, PROMPTS
from perpo_pipeline.store.writing import Recipe, Writer, adopt_files, reuse_complete
from perpo_pipeline.train import integrations
from perpo_pipeline.vlm.adapters import read_record, write_record
from perpo_pipeline.vlm.inputs import (
    context_length,
    count_row_tokens,
    encode_row,
    identify_model,
    model_notes,
    open_model,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from perpo_pipeline.train.lists import Forward, TrainingList
    from perpo_pipeline.train.processes import World
    from perpo_pipeline.vlm.files import ResolvedModel
    from perpo_pipeline.vlm.models import Vlm

STAGE_VERSION = 2
PROMPT_COLUMNS = PROMPTS.pick(
    "prompt_id", "task", "image", "image_sha256", "width", "height", "prompt", role="truth"
)
LOG_COLUMNS = [name for name in ADAPTER_LOG.columns.names if name != "step"]
NO_SPACE_BYTES = 2**20
NO_SPACE = ("No space left", "quota exceeded", "os error 122")  # a disk, or a user's share of it
SHOWN = 5  # prompt_ids in a message


@dataclass(frozen=True)
class Task:
    """What a variant is trained from; all of it is known before the model is loaded."""

    variant: str
    settings: TrainSettings
    preferences: Version
    prompts: Version
    resolved: "ResolvedModel"
    model_settings: dict[str, Any]
    recipe: Recipe


def train(run: Run, variant: str) -> Version:
    """Train one variant (a method with its settings) on the run's preferences.

    Under torchrun and the like every process calls it: the first writes, all compute.
    """
    settings = run.config.train.variants()[variant]
    world = _join(run, settings)
    if not world.is_first:
        run = replace(run, muted=True, quiet=True)
    if settings.batch_size % world.size:
        run.say(
            f"train: {settings.batch_size} lists a step over {world.size} processes: shared by "
            "tokens, so some have one more, and the others wait"
        )
    with world.first_alone():
        task = task_of(run, variant)
    place = run.out or run.place("adapter", variant)
    if world.is_first:
        _lead(run, task, world, place)
    elif world.share(False):
        _train(run, task, world, place / task.recipe.fingerprint)
    world.wait()
    return open_version(place / task.recipe.fingerprint, "adapter")


def find_trained(run: Run, variant: str) -> Version | None:
    """The complete version of a variant where it is there, made the one in use."""
    return reuse_complete(run.out or run.place("adapter", variant), task_of(run, variant).recipe)


def task_of(run: Run, variant: str) -> Task:
    """Find what a variant is trained from, and its recipe."""
    settings = run.config.train.variants()[variant]
    preferences = run.latest("preferences", run.config.sample.split)
    prompts = input_of(preferences, "prompts")
    resolved, model_settings = identify_model(run.config.model, run.scratch)
    found = {**model_settings, **box_settings(run.config.model)}
    recipe = Recipe(
        "adapter",
        variant,
        "train",
        STAGE_VERSION,
        counted_settings("adapter", settings, found),
        {"preferences": preferences, "prompts": prompts},
        notes=model_notes(run.config.model),
    )
    return Task(variant, settings, preferences, prompts, resolved, model_settings, recipe)


def _join(run: Run, settings: TrainSettings) -> "World":
    """Meet the other processes of the run."""
    from perpo_pipeline.train.processes import join_world, placed_by_launcher

    if not uses_cuda(run):
        compute_on_cpu()
    placed = placed_by_launcher(os.environ)
    _check_processes(run, settings, int(placed["WORLD_SIZE"]) if placed else 1)
    return join_world(on_cuda=uses_cuda(run), with_deepspeed=settings.deepspeed is not None)


def check_before_start(run: Run, variant: str, num_processes: int, world_size: int) -> None:
    """Raise for what would make the processes fail at once."""
    import torch

    _check_processes(run, run.config.train.variants()[variant], world_size)
    if uses_cuda(run) and torch.cuda.device_count() < num_processes:
        raise ConfigError(
            f"--num-processes is {num_processes}, and this node has {torch.cuda.device_count()} "
            "GPUs",
            fix="give --num-processes the number of GPUs of a node",
        )


def _check_processes(run: Run, settings: TrainSettings, world_size: int) -> None:
    from perpo_pipeline.train.zero import check_installed, read_zero_config

    check_batch_size(settings.batch_size, world_size)
    integrations.check_installed(settings.log_to)
    if settings.deepspeed is not None:
        check_installed(read_zero_config(settings.deepspeed), on_cuda=uses_cuda(run))


def uses_cuda(run: Run) -> bool:
    """Whether the run's model will be on a GPU."""
    import torch

    return run.config.model.device != "cpu" and torch.cuda.is_available()


def check_batch_size(batch_size: int, num_processes: int) -> None:
    """Raise ConfigError where some processes would have no list of a step."""
    if batch_size < num_processes:
        raise ConfigError(
            f"train.batch_size is {batch_size} lists a step, for {num_processes} processes: some "
            "would never have one",
            fix=f"use at most {batch_size} processes, or raise train.batch_size (which changes "
            "the result)",
        )


def _lead(run: Run, task: Task, world: "World", place: Path) -> None:
    """What the first process does: train with the others where need be, and write."""
    announced: list[bool] = []

    def work(writer: Writer) -> Mapping[str, Any]:
        if not writer.has_part(0):
            announced.append(world.share(True))
            writer.write_part(0, _train(run, task, world, writer.path, writer))
        shutil.rmtree(writer.path / "checkpoints", ignore_errors=True)
        record = read_record(writer.path)
        return {
            "steps": writer.read_part(0).num_rows,
            "lists": record["lists"],
            "dropped_too_long": len(record["dropped_too_long"]),
        }

    make(run, task.recipe, work, out=place)
    if not announced:
        world.share(False)


def _train(
    run: Run, task: Task, world: "World", path: Path, writer: Writer | None = None
) -> list[dict[str, Any]]:
    """Train; with a writer put what was trained into the version. Returns the rows of the log."""
    from perpo_pipeline.train.cut_weights import loaded_in_pieces, whole_by_module
    from perpo_pipeline.train.engine import ready_model
    from perpo_pipeline.train.lists import ground_truth_list, ranked_lists
    from perpo_pipeline.train.trainer import fit
    from perpo_pipeline.train.zero import read_zero_config

    settings, preprocess = task.settings, task.model_settings["preprocess"]
    zero = read_zero_config(settings.deepspeed) if settings.deepspeed else None
    with _full_disk_explained(path), lost_contact_explained():
        with loaded_in_pieces(zero, task.resolved, task.model_settings["dtype"]):
            vlm = open_model(run.config.model, task.resolved, task.model_settings, run.scratch)
        forward = _choose_forward(run, vlm, settings)
        ready_model(vlm, forward, settings)
        lists = ranked_lists(*rows_and_prompts(task.preferences, task.prompts))
        sampled = lists
        if not settings.chosen_method.needs_preferences:
            lists = [ground_truth_list(entry, vlm, run.config.model) for entry in lists]
        lists, dropped = _that_fit(run, vlm, lists, preprocess, drop=settings.drop_too_long)
        with whole_by_module(vlm.model):
            _check_forward(run, vlm, _same_prompt(sampled, lists[0]), preprocess, settings, forward)
            if settings.chosen_method.needs_preferences:
                lists = _with_reference(run, vlm, task, lists, forward, world)
        trainer, history = fit(
            vlm,
            lists,
            settings,
            preprocess,
            forward,
            path / "checkpoints",
            name=f"train {task.variant}",
            quiet=run.quiet,
            world=world,
        )
        staging = path / "checkpoints" / "trained"
        trainer.save_trained(staging)
        if writer is not None:
            adopt_files(staging, writer)
            write_record(
                path,
                {
                    "base_identity": vlm.identity,
                    "base_model": run.config.model.id,
                    "lists": len(lists),
                    "dropped_too_long": dropped,
                },
            )
    return [
        {"step": entry["step"], **{name: entry.get(name) for name in LOG_COLUMNS}}
        for entry in history
    ]


def _choose_forward(run: Run, vlm: "Vlm", settings: TrainSettings) -> "Forward":
    from perpo_pipeline.train.engine import choose_forward

    forward = choose_forward(vlm, settings.forward)
    if settings.forward == "auto" and forward == "concatenated":
        why = (
            "its layers are not all full attention"
            if vlm.family.known or not vlm.full_attention
            else "the family was never tried; `forward: shared-prefix` tries it, checked at start"
        )
        run.say(
            f"train: one full row a completion (forward: concatenated) for this "
            f"'{vlm.family.name}' model, which is slow: {why}"
        )
    return forward


def rows_and_prompts(
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
    run: Run,
    vlm: "Vlm",
    entry: "TrainingList",
    preprocess: str,
    settings: TrainSettings,
    forward: "Forward",
) -> None:
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
    lists = [
        replace(entry, prompt_tokens=count_row_tokens(vlm, entry.prompt, preprocess))
        for entry in run.progress(lists, "lengths")
    ]
    lengths = {
        entry.prompt["prompt_id"]: (entry.prompt_tokens or 0) + max(map(len, entry.completions))
        for entry in lists
    }
    too_long = [p for p, length in lengths.items() if limit is not None and length > limit]
    shown = ", ".join(f"{p} ({lengths[p]} tokens)" for p in too_long[:SHOWN])
    shown += ", ..." if len(too_long) > SHOWN else ""
    if too_long and (not drop or len(too_long) == len(lists)):
        raise InputError(
            f"{len(too_long)} of {len(lists)} lists are longer than the model's context of "
            f"{limit} tokens",
            where=f"prompts {shown}",
            fix="lower sample.max_new_tokens, or use --set train.drop_too_long=true",
        )
    if too_long:
        run.say(f"train: dropped {len(too_long)} lists longer than {limit} tokens: {shown}")
    return [entry for entry in lists if entry.prompt["prompt_id"] not in set(too_long)], too_long


def _with_reference(
    run: Run,
    vlm: "Vlm",
    task: Task,
    lists: "Sequence[TrainingList]",
    forward: "Forward",
    world: "World",
) -> "list[TrainingList]":
    """The lists with the base model's log-probabilities; for DPO best and worst alone."""
    from perpo_pipeline.train.lists import best_against_worst, with_reference
    from perpo_pipeline.train.reference import make_reference

    settings, variant = task.settings, task.preferences.variant
    reference = make_reference(
        run,
        vlm,
        task.preferences,
        lists,
        settings,
        task.model_settings,
        forward,
        place=run.out / "reference" if run.out else run.place("reference", variant),
        world=world,
    )
    logps = reference.table().to_pydict()
    by_prompt = dict(zip(logps["prompt_id"], logps["ref_logps"], strict=True))
    known = with_reference(lists, by_prompt)
    pairs = settings.chosen_method.trains_on == "pair"
    return [best_against_worst(entry) for entry in known] if pairs else known


@contextmanager
def lost_contact_explained() -> "Iterator[None]":
    """Name it where a process waits for another that is no more."""
    from perpo_pipeline.train.processes import is_lost_contact

    try:
        yield
    except RuntimeError as error:
        if not is_lost_contact(error):
            raise
        raise LostContactError(
            f"another process of this run has ended: {first_line(error)}",
            fix="see what that one said; the same command goes on after the last checkpoint",
        ) from error


@contextmanager
def _full_disk_explained(path: Path) -> "Iterator[None]":
    """Checkpoints are written by libraries that wrap the system's error in their own."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        told = any(text in str(error) for text in NO_SPACE)
        if shutil.disk_usage(path).free > NO_SPACE_BYTES and not told:
            raise
        raise ArtifactError(
            "the disk is full",
            where=str(path),
            fix="free some space, then run the same command: it goes on after the last checkpoint",
        ) from error
