"""Run a training: plan, model, Trainer and checkpoints, to the end or to a signal."""

import math
import signal
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from perpo_pipeline.config.methods import Method
from perpo_pipeline.config.train import TrainSettings
from perpo_pipeline.errors import Stopped
from perpo_pipeline.interrupts import StopRequest
from perpo_pipeline.train.batches import (
    ListCollator,
    Step,
    is_in_one_row,
    list_rows,
    make_step,
)
from perpo_pipeline.train.checkpoints import (
    KEPT_CHECKPOINTS,
    IntervalsOfNow,
    MarkWhole,
    last_complete,
    remove_incomplete,
    saver_now,
    step_of,
    without_comparison,
)
from perpo_pipeline.train.engine import ListPolicy
from perpo_pipeline.train.image_workers import (
    PassedOn,
    deaths_explained,
    num_workers,
    worker_arguments,
)
from perpo_pipeline.train.integrations import (
    keep_loose_files,
    logging_under,
    reporting_callbacks,
)
from perpo_pipeline.train.lists import TrainingList
from perpo_pipeline.train.master_weights import MasterAdamW
from perpo_pipeline.train.plan import StepSampler, make_sampler
from perpo_pipeline.train.processes import World
from perpo_pipeline.train.progress import Progress
from perpo_pipeline.train.scope import make_trainable
from perpo_pipeline.train.stopping import StopAtRequest
from perpo_pipeline.train.token_budget import Forward
from perpo_pipeline.train.trainer import ListTrainer
from perpo_pipeline.train.zero import (
    ZeroConfig,
    complete_zero_config,
    read_zero_config,
    zero_stage,
)
from perpo_pipeline.vlm.models import base_model

if TYPE_CHECKING:
    from perpo_pipeline.vlm.models import Vlm

NEVER = 10**9  # steps


def fit(
    vlm: "Vlm",
    lists: Sequence[TrainingList],
    settings: TrainSettings,
    preprocess: str,
    forward: Forward,
    checkpoints: Path,
    *,
    name: str = "train",
    quiet: bool = False,
    world: World = World(),  # noqa: B008 (frozen)
) -> tuple[ListTrainer, list[dict[str, Any]]]:
    """Train on `lists`; resumes from the last whole checkpoint in `checkpoints`.

    Returns the trainer and one log entry per optimiser step. `settings.seed` decides the adapter's
    first weights and, with `settings.order`, the order of the lists, and so the result; the number
    of processes changes it by no more than rounding. The integrations that `settings.log_to` names
    write into the folder `logs` next to `checkpoints`. Raises Stopped after Ctrl-C or SIGTERM, once
    a checkpoint is saved.
    """
    torch.manual_seed(settings.seed)
    zero = _zero_config(vlm, settings)
    saver = saver_now(checkpoints, zero_stage(zero), world)
    request = StopRequest(
        f"{name}: this step is finished and saved first; Ctrl-C again ends at once and loses the "
        "steps since the last checkpoint"
        if world.is_first
        else ""
    )
    progress = Progress(name, quiet)
    stopping = StopAtRequest(request, world, settings.checkpoint_minutes * 60)
    if world.is_first:
        remove_incomplete(checkpoints)
    start = last_complete(checkpoints, saver, world)
    sampler = make_sampler(
        list_rows(vlm, lists, preprocess, forward),
        settings,
        in_one_row=is_in_one_row(vlm, forward),
        rank=world.rank,
        size=world.size,
        margins=[entry.margin for entry in lists],
    )
    policy = make_trainable(vlm, settings)
    log_to = settings.log_to if world.is_first else []
    logs = checkpoints.parent / "logs"
    with logging_under(log_to, logs):
        trainer = ListTrainer(
            settings,
            steps=_loader(vlm, lists, settings, preprocess, forward, sampler),
            world=world,
            model=ListPolicy(policy),
            args=_arguments(settings, len(sampler), checkpoints, name, vlm, world, zero),
            train_dataset=PassedOn[TrainingList](len(lists)),
            optimizer_cls_and_kwargs=(
                torch.optim.AdamW if zero else MasterAdamW,
                {"lr": settings.learning_rate},
            ),
            callbacks=[
                IntervalsOfNow(),
                MarkWhole(saver, world),
                stopping,
                progress,
                *reporting_callbacks(log_to),
            ],
        )
        with closing(progress):
            _run(trainer, request, start)
    if world.is_first:
        keep_loose_files(checkpoints, logs)
    state = trainer.state
    if state.global_step < state.max_steps:
        why = "interrupted" if stopping.number == signal.SIGINT else "stopped by SIGTERM"
        raise Stopped(
            f"{name}: {why} after step {state.global_step} of {state.max_steps}, which is saved; "
            "the same command goes on from there",
            stopping.number,
        )
    return trainer, [entry for entry in state.log_history if "loss" in entry]


def _run(trainer: ListTrainer, request: StopRequest, start: str | None) -> None:
    """Train from the checkpoint `start`, or from the beginning."""
    for unwanted in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(unwanted)
    if start is not None:  # the Trainer skips steps of the epoch under way, but does not name it
        steps: Any = trainer.steps
        steps.set_epoch(step_of(start) // len(steps))
    try:
        with request.listening(), deaths_explained(), without_comparison():
            trainer.train(resume_from_checkpoint=start)
    finally:  # otherwise transformers would shard the next model that is loaded, too
        unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]


def _zero_config(vlm: "Vlm", settings: TrainSettings) -> ZeroConfig | None:
    if settings.deepspeed is None:
        return None
    text: Any = base_model(vlm.model).config.get_text_config()
    return complete_zero_config(
        read_zero_config(settings.deepspeed), dtype=vlm.dtype, hidden_size=text.hidden_size
    )


def _loader(
    vlm: "Vlm",
    lists: Sequence[TrainingList],
    settings: TrainSettings,
    preprocess: str,
    forward: Forward,
    sampler: StepSampler,
) -> "StepLoader":
    collator = ListCollator(
        vlm, preprocess, forward, settings.max_tokens_per_forward, settings.row_lengths
    )
    workers = num_workers(settings.num_workers, vlm.device.type)
    return StepLoader(
        PassedOn[Step](len(lists)),
        batch_sampler=_Steps(lists, settings.chosen_method, sampler),
        collate_fn=(collator.for_workers() if workers else collator).collate_step,
        **worker_arguments(workers, vlm.device.type),
    )


@dataclass(frozen=True)
class _Steps:
    """The planned steps of an epoch with their lists."""

    lists: Sequence[TrainingList]
    method: Method
    sampler: StepSampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[Step]]:
        for (planned,) in self.sampler:
            yield [make_step(self.lists, self.method, planned)]


class StepLoader(DataLoader[Step]):
    """One process's steps; passes the Trainer's epoch on to the plan."""

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the plan."""
        steps: Any = self.batch_sampler
        steps.sampler.set_epoch(epoch)


def _arguments(
    settings: TrainSettings,
    steps_per_epoch: int,
    checkpoints: Path,
    name: str,
    vlm: "Vlm",
    world: World,
    zero: ZeroConfig | None,
) -> TrainingArguments:
    steps = steps_per_epoch * settings.epochs
    on_cpu = vlm.device.type == "cpu"
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        seed=settings.seed,
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=math.ceil(settings.batch_size / world.size),
        warmup_steps=math.ceil(settings.warmup_ratio * steps),
        lr_scheduler_type=_scheduler(settings),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.checkpoint_every or NEVER,
        save_total_limit=KEPT_CHECKPOINTS,
        remove_unused_columns=False,
        run_name=name,
        report_to="none",  # `reporting_callbacks` adds the callbacks
        use_cpu=on_cpu,
        # ZeRO takes its precision from its own settings; `bf16` would turn on autocast.
        bf16_full_eval=zero is not None and vlm.dtype == torch.bfloat16,
        deepspeed=zero,
        ddp_backend="gloo" if on_cpu and world.size > 1 else None,
        # A vision tower's last layers may be unused; everything else that is trained is used.
        ddp_find_unused_parameters="vision_tower" in settings.scope,
        dataloader_pin_memory=False,  # `worker_arguments` decides it
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # several would mean DataParallel, a larger batch
    return arguments


def _scheduler(settings: TrainSettings) -> str:
    if settings.lr_scheduler == "constant" and settings.warmup_ratio > 0:
        return "constant_with_warmup"
    return settings.lr_scheduler
