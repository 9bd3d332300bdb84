"""transformers' Trainer over lists: it brings checkpoints, resume, logging and distributed launch.

Ours are the loss, the split of a step over processes and into forwards of a bounded number of
tokens (plan.py), an optimiser that keeps fp32 masters of bf16 weights, what a checkpoint holds
(what is trained, not the base), and when it counts (checkpoints.py).
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainingArguments,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer import SCHEDULER_NAME

from perpo_pipeline.config.train import TrainSettings
from perpo_pipeline.errors import InputError, Stopped
from perpo_pipeline.train.checkpoints import KEPT_CHECKPOINTS, MarkWhole, Saver, last_whole
from perpo_pipeline.train.engine import ListPolicy, memory_explained
from perpo_pipeline.train.integrations import (
    keep_loose_files,
    logging_under,
    reporting_callbacks,
)
from perpo_pipeline.train.lists import (
    Forward,
    ListCollator,
    ListDataset,
    Step,
    StepDataset,
    TrainingBatch,
    TrainingList,
    ignore_sigterm,
    num_workers,
    planned_tokens,
    raise_failure,
)
from perpo_pipeline.train.losses import best_completion_nll
from perpo_pipeline.train.master_weights import MasterAdamW
from perpo_pipeline.train.plan import StepSampler
from perpo_pipeline.train.processes import World
from perpo_pipeline.train.progress import Progress
from perpo_pipeline.train.scope import trainable
from perpo_pipeline.train.step_log import StepLog
from perpo_pipeline.train.stopping import StopAtRequest, StopRequest
from perpo_pipeline.train.zero import (
    ZeroConfig,
    complete_zero_config,
    load_zero_checkpoint,
    read_zero_config,
    whole_masters,
    zero_stage,
)
from perpo_pipeline.vlm.adapters import load_trained, save_trained
from perpo_pipeline.vlm.attention import uses_flex_attention
from perpo_pipeline.vlm.inputs import count_row_tokens
from perpo_pipeline.vlm.models import base_model

if TYPE_CHECKING:
    from perpo_pipeline.vlm.models import Vlm


def batch_losses(logps: Tensor, batch: TrainingBatch, settings: TrainSettings) -> Tensor:
    """The loss of each list of a batch, from log-probabilities `(B, N)` to `(B,)`.

    A mean over the lists gives a step's loss; where the method trains on the ground truth, the
    losses are sums over tokens and a mean over the tokens does.
    """
    method = settings.chosen_method
    loss: Callable[..., Tensor] = method.load_loss()
    chosen = {name: getattr(settings, name) for name in method.settings}
    if not method.needs_preferences:
        return loss(logps, **chosen)
    losses = loss(
        logps,
        batch.ref_logps,
        batch.rewards,
        counts=batch.counts,
        mask=batch.lists.mask,
        **chosen,
    )
    if settings.sft_weight:
        anchor = best_completion_nll(
            logps, batch.rewards, batch.lists.num_tokens, counts=batch.counts, mask=batch.lists.mask
        )
        losses = losses + settings.sft_weight * anchor
    return losses


class ListTrainer(Trainer):
    """Trains a `ListPolicy` with one of the list losses, in one process of the run's `world`."""

    def __init__(
        self, settings: TrainSettings, steps: "DataLoader[Step]", world: World, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.settings, self.steps, self.world = settings, steps, world
        self.step_log = StepLog(self.policy, self.args.device, world)

    def get_train_dataloader(self) -> "DataLoader[Step]":
        """This process's steps; the plan has shared them out already."""
        return self.steps

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *_: Any) -> Tensor:
        """Forward and backward of one step's lists, batch after batch; the step's loss.

        Processes average their gradients, and the Trainer their losses: each gives its share of
        the step's mean times their number. Gradients meet at the last forward.
        """
        model.train()
        raise_failure(inputs)
        batches: Sequence[TrainingBatch] = inputs["batches"]
        self.prompt_ids: Sequence[str] = inputs["prompt_ids"]
        num_real = len(batches) - inputs["num_dummies"]
        losses = []
        for number, batch in enumerate(batches):
            weight = self.world.size if number < num_real else 0
            with (
                self._meeting(model, is_last=number == len(batches) - 1),
                memory_explained(self.settings, len(batch.prompt_ids)),
            ):
                losses.append(
                    self._forward_backward(
                        model, batch.to(self.args.device), inputs["total"], weight
                    )
                )
        return torch.stack(losses).sum()

    @contextlib.contextmanager
    def _meeting(self, model: nn.Module, *, is_last: bool) -> Iterator[None]:
        """Gradients are averaged, and under ZeRO the step is taken, at the last forward alone."""
        self.accelerator.gradient_state._set_sync_gradients(is_last)
        if is_last or self.is_deepspeed_enabled:
            yield
            return
        with self.accelerator.no_sync(model):
            yield

    def _forward_backward(
        self, model: nn.Module, batch: TrainingBatch, total: float, weight: int
    ) -> Tensor:
        """`weight` times this batch's share of the step's loss: a mean over `Step.total`."""
        logps = model(batch.lists)
        losses = batch_losses(logps, batch, self.settings)
        if weight:
            compares = self.settings.chosen_method.needs_preferences
            self.step_log.add(logps.detach() if compares else None, batch)
        if not bool(losses.isfinite().all()):
            raise InputError(
                f"the loss is {losses.tolist()} at step {self.state.global_step + 1}",
                where=f"prompts {', '.join(batch.prompt_ids)}",
                fix="lower train.learning_rate, or look at these prompts with `perpo inspect`",
            )
        loss: Tensor = losses.sum() / total * weight
        self.accelerator.backward(loss)
        return loss.detach()

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip; a gradient that is not finite stops the run before it reaches the weights."""
        norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        if norm is not None and not math.isfinite(float(norm)):  # by ZeRO inf; it skips the step
            raise InputError(
                f"the gradient's norm is {float(norm)} at step {self.state.global_step + 1}",
                where=f"prompts {', '.join(self.prompt_ids)}",
                fix="lower train.learning_rate, or look at these prompts with `perpo inspect`; the "
                "same command goes on after the last checkpoint",
            )
        return norm

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add what the losses cannot tell to each line of the log."""
        if "loss" in logs:
            logs.update(self.step_log.close())
        super().log(logs, *args, **kwargs)

    @property
    def policy(self) -> Any:
        """The transformers or PEFT model inside the `ListPolicy` that is trained."""
        policy: Any = self.model
        return policy.model

    def save_trained(self, directory: str | Path) -> None:
        """Write what was trained, in the first process; an adapter in fp32, as the optimiser keeps
        it. All processes must call it."""
        masters = whole_masters(self.policy) if self.is_deepspeed_enabled else self._masters()
        if self.world.is_first:
            save_trained(self.policy, Path(directory), masters)

    def _masters(self) -> dict[Tensor, Tensor]:
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return optimizer.masters() if isinstance(optimizer, MasterAdamW) else {}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A checkpoint holds what is trained alone: the base is known by its identity."""
        self.save_trained(output_dir or str(self.args.output_dir))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        engine: Any = self.model_wrapped
        engine.save_checkpoint(output_dir, exclude_frozen_parameters=True)
        if self.world.is_first:
            scheduler: Any = self.lr_scheduler
            torch.save(scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(self.policy, Path(resume_from_checkpoint))

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        """As the Trainer's, but a ZeRO checkpoint has no frozen weights to load."""
        by_zero = resume_from_checkpoint if self.is_deepspeed_enabled else None
        by_trainer = None if by_zero else resume_from_checkpoint
        prepared = super()._prepare_for_training(  # type: ignore[no-untyped-call]
            max_steps, train_dataloader, by_trainer
        )
        if by_zero is not None:
            load_zero_checkpoint(self.model_wrapped, by_zero)
            self._load_optimizer_and_scheduler(by_zero)
        return prepared


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
    """Train on `lists`; goes on after the last whole checkpoint in `checkpoints`.

    Returns the trainer and one log entry an optimiser step. The adapter's first weights, the
    order of the lists and so the result depend on `settings.seed` alone; the number of processes
    changes it by rounding. What `settings.log_to` names writes into the folder `logs` beside
    `checkpoints`. Raises Stopped after SIGTERM, once a checkpoint is saved.
    """
    torch.manual_seed(settings.seed)
    zero = _zero_config(vlm, settings)
    saver = Saver(world.size if zero else 1, zero_stage(zero), checkpoints.parent.name)
    request = StopRequest()
    start = last_whole(checkpoints, saver, world)
    sampler = _sampler(vlm, lists, settings, preprocess, forward, world)
    policy = trainable(vlm, settings)
    log_to = settings.log_to if world.is_first else []
    logs = checkpoints.parent / "logs"
    with logging_under(log_to, logs):
        trainer = ListTrainer(
            settings,
            steps=_loader(vlm, lists, settings, preprocess, forward, sampler),
            world=world,
            model=ListPolicy(policy),
            args=_arguments(settings, len(sampler), checkpoints, name, vlm, world, zero),
            train_dataset=ListDataset(lists),
            optimizer_cls_and_kwargs=(
                torch.optim.AdamW if zero else MasterAdamW,
                {"lr": settings.learning_rate},
            ),
            callbacks=[
                MarkWhole(saver, world),
                StopAtRequest(request, world),
                Progress(name, quiet),
                *reporting_callbacks(log_to),
            ],
        )
        for unwanted in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(unwanted)
        try:
            with request.listening():
                trainer.train(resume_from_checkpoint=start)
        finally:  # transformers would cut the next model that is loaded in pieces as well
            unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]
    if world.is_first:
        keep_loose_files(checkpoints, logs)
    if trainer.state.global_step < trainer.state.max_steps:
        raise Stopped(
            f"{name}: stopped by SIGTERM after step {trainer.state.global_step} of "
            f"{trainer.state.max_steps}, with a checkpoint; the same command goes on from there"
        )
    return trainer, [entry for entry in trainer.state.log_history if "loss" in entry]


def _zero_config(vlm: "Vlm", settings: TrainSettings) -> ZeroConfig | None:
    if settings.deepspeed is None:
        return None
    text: Any = base_model(vlm.model).config.get_text_config()
    return complete_zero_config(
        read_zero_config(settings.deepspeed), dtype=vlm.dtype, hidden_size=text.hidden_size
    )


def _sampler(
    vlm: "Vlm",
    lists: Sequence[TrainingList],
    settings: TrainSettings,
    preprocess: str,
    forward: Forward,
    world: World,
) -> StepSampler:
    in_one_row = forward == "concatenated" or uses_flex_attention(base_model(vlm.model))
    lengths = []
    for entry in lists:
        tokens = entry.prompt_tokens
        if tokens is None:
            tokens = count_row_tokens(vlm, entry.prompt, preprocess)
        lengths.append(planned_tokens(entry, tokens, forward))
    return StepSampler(
        lengths,
        settings.batch_size,
        settings.seed,
        settings.max_tokens_per_step,
        in_one_row=in_one_row,
        rank=world.rank,
        size=world.size,
    )


def _loader(
    vlm: "Vlm",
    lists: Sequence[TrainingList],
    settings: TrainSettings,
    preprocess: str,
    forward: Forward,
    sampler: StepSampler,
) -> "StepLoader":
    collator = ListCollator(vlm, preprocess, forward, settings.max_tokens_per_step)
    return StepLoader(
        StepDataset(lists, settings.chosen_method),
        batch_sampler=sampler,
        collate_fn=collator.collate_step,
        num_workers=num_workers(settings.num_workers, vlm.device.type),
        worker_init_fn=ignore_sigterm,
    )


class StepLoader(DataLoader[Step]):
    """A process's steps, and a place for the Trainer to say which epoch it is."""

    def set_epoch(self, epoch: int) -> None:
        """Hand the epoch to the plan."""
        sampler: Any = self.batch_sampler
        sampler.set_epoch(epoch)


def _arguments(
    settings: TrainSettings,
    steps_an_epoch: int,
    checkpoints: Path,
    name: str,
    vlm: "Vlm",
    world: World,
    zero: ZeroConfig | None,
) -> TrainingArguments:
    steps = steps_an_epoch * settings.epochs
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
        save_steps=settings.checkpoint_every,
        save_total_limit=KEPT_CHECKPOINTS,
        remove_unused_columns=False,
        run_name=name,
        report_to="none",  # their callbacks are added by themselves
        use_cpu=on_cpu,
        # ZeRO takes its precision from its own settings; the other way to say so is autocast.
        bf16_full_eval=zero is not None and vlm.dtype == torch.bfloat16,
        deepspeed=zero,
        ddp_backend="gloo" if on_cpu and world.size > 1 else None,
        # A vision tower's last layers may serve nothing; all else that is trained always does.
        ddp_find_unused_parameters="vision_tower" in settings.scope,
        dataloader_pin_memory=False,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # several would be DataParallel: a larger batch
    return arguments


def _scheduler(settings: TrainSettings) -> str:
    if settings.lr_scheduler == "constant" and settings.warmup_ratio > 0:
        return "constant_with_warmup"
    return settings.lr_scheduler
