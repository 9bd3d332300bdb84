"""`perpo train`: preferences and a model -> the adapter artifact (trained weights and log)."""

import os
import shutil
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perpo_pipeline.advice import command
from perpo_pipeline.config.steps import say_few_steps
from perpo_pipeline.errors import ArtifactError, LostContactError, Stopped, first_line
from perpo_pipeline.interrupts import signal_of
from perpo_pipeline.machine import compute_on_cpu
from perpo_pipeline.run import Run, make
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.finding import made_version
from perpo_pipeline.store.schemas import ADAPTER_LOG
from perpo_pipeline.store.writing import Writer, adopt_files
from perpo_pipeline.train.forward import check_forward, prove_forward
from perpo_pipeline.train.references import (
    lists_that_both_read,
    make_references,
    references_of_another_model,
    with_references,
)
from perpo_pipeline.train.task import (
    Task,
    check_processes,
    has_older_targets,
    read_lists,
    task_of,
    uses_cuda,
)
from perpo_pipeline.vlm.adapters import describe_base, name_base, read_record, write_record
from perpo_pipeline.vlm.cards import unlike_cards, visible_cards
from perpo_pipeline.vlm.inputs import open_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from perpo_pipeline.config.train import TrainSettings
    from perpo_pipeline.train.processes import World

LOG_COLUMNS = [name for name in ADAPTER_LOG.columns.names if name != "step"]
NO_SPACE_BYTES = 2**20
# In messages of the libraries that write checkpoints: a full disk, or a user's used-up quota.
NO_SPACE = ("No space left", "quota exceeded", "os error 122")


def train(run: Run, variant: str) -> Version:
    """Train one variant (a method with its settings) on the run's preferences.

    Every process of a distributed run calls it: all compute, and the first one writes.
    """
    settings = run.config.train.variants()[variant]
    world = _join(run, settings)
    if not world.is_first:
        run = replace(run, muted=True, quiet=True)
    if settings.batch_size % world.size:
        run.say(
            f"train: {settings.batch_size} lists per step over {world.size} processes: they are "
            "shared by tokens, so some processes have one list more and the others wait"
        )
    if uses_cuda(run) and (unlike := unlike_cards(visible_cards()[: world.size])):
        run.say(f"train: {unlike}")
    with world.first_alone():
        task = task_of(run, variant)
    place = run.out or run.place("adapter", variant)
    if world.is_first:
        _train_and_write(run, task, world, place)
    elif world.broadcast(False):
        _train(run, task, world, task.recipe.place(place))
    world.wait()
    return made_version(place, task.recipe)


def _join(run: Run, settings: "TrainSettings") -> "World":
    """Meet the other processes of the run."""
    from perpo_pipeline.train.processes import join_world, placed_by_launcher

    if not uses_cuda(run):
        compute_on_cpu()
    placed = placed_by_launcher(os.environ)
    check_processes(run, settings, int(placed["WORLD_SIZE"]) if placed else 1)
    return join_world(on_cuda=uses_cuda(run), with_deepspeed=settings.deepspeed is not None)


def _train_and_write(run: Run, task: Task, world: "World", place: Path) -> None:
    """In the first process: find the finished adapter, or train it with the others and write it."""
    announced: list[bool] = []

    def work(writer: Writer) -> Mapping[str, Any]:
        if not writer.has_part(0):
            announced.append(world.broadcast(True))
            writer.write_part(0, _train(run, task, world, writer.path, writer))
        shutil.rmtree(writer.path / "checkpoints", ignore_errors=True)
        record = read_record(writer.path)
        return {
            "steps": writer.read_part(0).num_rows,
            "lists": record["lists"],
            "dropped_too_long": len(record["dropped_too_long"]),
        }

    make(run, task.recipe, work, out=place, confirm=lambda _: has_older_targets(run, task))
    if not announced:
        world.broadcast(False)


def _train(
    run: Run, task: Task, world: "World", path: Path, writer: Writer | None = None
) -> list[dict[str, Any]]:
    """Train; with a writer, add the trained weights to the version. Returns the log's rows."""
    from perpo_pipeline.train.checkpoints import last_complete, saver_now
    from perpo_pipeline.train.engine import ready_model
    from perpo_pipeline.train.fit import fit
    from perpo_pipeline.train.sharded_weights import gathered_by_module, sharded_loading
    from perpo_pipeline.train.zero import read_zero_config, zero_stage

    settings = task.settings
    _start_image_workers(run, settings)
    zero = read_zero_config(settings.deepspeed) if settings.deepspeed else None
    checkpoints = path / "checkpoints"
    interrupted = _interrupt_explained(f"train {task.variant}", checkpoints)
    with _full_disk_explained(path), lost_contact_explained(), interrupted:
        # Whether a checkpoint can be resumed is known before the model is loaded.
        last_complete(checkpoints, saver_now(checkpoints, zero_stage(zero), world), world)
        references = references_of_another_model(run, task, world, zero)
        with (
            run.bar(f"train {task.variant}", doing="loading the model"),
            sharded_loading(zero, task.resolved, task.model_settings["dtype"]),
        ):
            vlm = open_model(run.config.model, task.resolved, task.model_settings, run.scratch)
        found = read_lists(run, task, vlm)
        if references is not None:
            found = lists_that_both_read(run, found, references)
        with gathered_by_module(vlm.model):
            forward, why = prove_forward(run, vlm, task, found.first_sampled, world)
        ready_model(vlm, forward, settings)
        _warn_of_few_steps(run, task, len(found.lists))
        with gathered_by_module(vlm.model):
            check_forward(run, vlm, task, found.first_sampled, forward)
            if references is None:
                references = make_references(run, vlm, task, found, forward, world)
        lists = with_references(vlm, task, found, references)
        if writer is not None:
            writer.note("forward", f"{forward}: {why}")
        trainer, history = fit(
            vlm,
            lists,
            settings,
            task.model_settings["preprocess"],
            forward,
            checkpoints,
            name=f"train {task.variant}",
            quiet=run.quiet,
            world=world,
        )
        staging = checkpoints / "trained"
        trainer.save_trained(staging)
        if writer is not None:
            name_base(staging, task.resolved)
            adopt_files(staging, writer)
            write_record(
                path,
                {
                    **describe_base(vlm),
                    "base_model": run.config.model.id,
                    "lists": len(lists),
                    "dropped_too_long": found.dropped,
                },
            )
    return [
        {"step": entry["step"], **{name: entry.get(name) for name in LOG_COLUMNS}}
        for entry in history
    ]


def _start_image_workers(run: Run, settings: "TrainSettings") -> None:
    """Start what makes image workers quickly, while the model is loaded."""
    from perpo_pipeline.train.image_workers import lacks_shared_memory, num_workers, start_server

    device = "cuda" if uses_cuda(run) else "cpu"
    if num_workers(settings.num_workers, device):
        start_server()
    elif settings.num_workers is None and device == "cuda" and (why := lacks_shared_memory()):
        run.say(f"train: {why}")


def _warn_of_few_steps(run: Run, task: Task, lists: int) -> None:
    sentence = say_few_steps(lists, {task.variant: task.settings})
    if sentence is None:
        return
    # No command filters the lists of a sweep's cell; its own `perpo filter` has said what helps.
    more = "" if run.pinned is not None else f" What would help: {command('filter')}"
    run.say(f"train: {sentence}{more}")


@contextmanager
def lost_contact_explained() -> "Iterator[None]":
    """Name the cause where this process waits for another one that has ended."""
    from perpo_pipeline.train.processes import is_lost_contact

    try:
        yield
    except RuntimeError as error:
        if not is_lost_contact(error):
            raise
        raise LostContactError(
            f"another process of this run has ended: {first_line(error)}",
            fix="see that process's message; the same command resumes from the last checkpoint",
        ) from error


@contextmanager
def _interrupt_explained(name: str, checkpoints: Path) -> "Iterator[None]":
    """Say what is saved where Ctrl-C or SIGTERM ends more than a step."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        from perpo_pipeline.train.checkpoints import newest_step

        step = newest_step(checkpoints)
        saved = (
            f"step {step} is saved, what came after it is lost; the same command goes on from there"
            if step
            else "no step is saved yet, and the same command begins the training again"
        )
        raise Stopped(f"{name} interrupted; {saved}", signal_of(interrupt)) from None


@contextmanager
def _full_disk_explained(path: Path) -> "Iterator[None]":
    """Name a full disk; the libraries that write checkpoints wrap the system's error."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        is_named = any(text in str(error) for text in NO_SPACE)
        if shutil.disk_usage(path).free > NO_SPACE_BYTES and not is_named:
            raise
        raise ArtifactError(
            "the disk is full",
            where=str(path),
            fix="free some space, then run the same command: it resumes from the last checkpoint",
        ) from error
