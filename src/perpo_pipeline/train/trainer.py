"""transformers' Trainer over lists; it provides checkpoints, resume, logging and launch.

Added here are the loss, the distribution of a step over processes and forwards of a bounded number
of tokens (plan.py), and what a checkpoint holds: the trained weights, not the base.
"""

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer import SCHEDULER_NAME

from perpo_pipeline.config.train import TrainSettings
from perpo_pipeline.errors import ArtifactError, InputError
from perpo_pipeline.train.batches import Step, TrainingBatch, raise_failure
from perpo_pipeline.train.engine import memory_explained
from perpo_pipeline.train.losses import best_completion_nll
from perpo_pipeline.train.master_weights import MasterAdamW
from perpo_pipeline.train.processes import World
from perpo_pipeline.train.step_log import StepLog
from perpo_pipeline.train.zero import load_zero_checkpoint, whole_masters
from perpo_pipeline.vlm.adapters import has_trained, load_trained, save_trained

if TYPE_CHECKING:
    from torch.utils.data import DataLoader


def batch_losses(logps: Tensor, batch: TrainingBatch, settings: TrainSettings) -> Tensor:
    """The loss of each list of a batch, from its forward's log-probabilities to `(B,)`.

    A step's loss is their mean over the lists. If the method trains on the ground truth, each loss
    is a sum over target tokens, and a step's loss is the mean over these tokens.
    """
    method = settings.chosen_method
    loss: Callable[..., Tensor] = method.load_loss()
    chosen: dict[str, Any] = {name: getattr(settings, name) for name in method.settings}
    logps, negative_logps = batch.split(logps)
    known = {
        "ties": batch.ties,
        "num_tokens": batch.num_tokens,
        "negative_logps": negative_logps,
        "negative_ref_logps": batch.negative_ref_logps,
    }
    taken = inspect.signature(loss).parameters
    chosen |= {name: value for name, value in known.items() if name in taken}
    if not method.needs_preferences:
        return loss(logps, **chosen)
    losses = loss(
        logps,
        batch.ref_logps,
        batch.rewards,
        counts=batch.counts,
        mask=batch.mask,
        **chosen,
    )
    if settings.sft_weight:
        anchor = best_completion_nll(
            logps, batch.rewards, batch.num_tokens, counts=batch.counts, mask=batch.mask
        )
        losses = losses + settings.sft_weight * anchor
    return losses


class ListTrainer(Trainer):
    """Trains a `ListPolicy` with a method's loss, in one process of the run's `world`."""

    def __init__(
        self, settings: TrainSettings, steps: "DataLoader[Step]", world: World, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.settings, self.steps, self.world = settings, steps, world
        self.step_log = StepLog(self.policy, self.args.device, world)
        self.is_in_training_mode = False
        self.unchecked: list[tuple[Sequence[str], Tensor]] = []  # names and losses of forwards

    def get_train_dataloader(self) -> "DataLoader[Step]":
        """This process's steps; the plan has distributed them already."""
        return self.steps

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *_: Any) -> Tensor:
        """Forward and backward of one step's lists, batch after batch; returns the step's loss.

        Processes average their gradients, and the Trainer averages their losses, so each process
        multiplies its share of the step's mean by their number. Gradients are averaged at the last
        forward.
        """
        if not self.is_in_training_mode:  # it visits thousands of modules, and nothing undoes it
            model.train()
            self.is_in_training_mode = True
        raise_failure(inputs)
        batches: Sequence[TrainingBatch] = inputs["batches"]
        self.names: Sequence[str] = inputs["names"]
        num_real = len(batches) - inputs["num_dummies"]
        losses = []
        for number, batch in enumerate(batches):
            weight = self.world.size if number < num_real else 0
            is_last = number == len(batches) - 1
            if weight:
                self.step_log.count(batch)
            with (
                self._synchronised(model, is_last=is_last),
                memory_explained(self.settings, len(batch.prompt_ids), backward=True),
            ):
                moved = batch.to(self.args.device, non_blocking=True)
                losses.append(
                    self._forward_backward(model, moved, inputs["total"], weight, is_last)
                )
        return torch.stack(losses).sum()

    @contextlib.contextmanager
    def _synchronised(self, model: nn.Module, *, is_last: bool) -> Iterator[None]:
        """Average gradients, and under ZeRO take the step, only at the last forward."""
        self.accelerator.gradient_state._set_sync_gradients(is_last)
        if is_last or self.is_deepspeed_enabled:
            yield
            return
        with self.accelerator.no_sync(model):
            yield

    def _forward_backward(
        self, model: nn.Module, batch: TrainingBatch, total: float, weight: int, is_last: bool
    ) -> Tensor:
        """`weight` times this batch's share of the step's loss: a mean over `Step.total`."""
        logps = model(batch.lists)
        losses = batch_losses(logps, batch, self.settings)
        self.unchecked.append((batch.names, losses.detach()))
        if weight and self.settings.chosen_method.needs_preferences:
            self.step_log.add(logps.detach(), batch)
        if is_last and (self.world.size > 1 or self.is_deepspeed_enabled):  # before it spreads
            self._check_losses()
        loss: Tensor = losses.sum() / total * weight
        self.accelerator.backward(loss)
        return loss.detach()

    def _check_losses(self, *others: Tensor) -> list[list[float]]:
        """Raise InputError for losses of this step that are not finite.

        Reads them, the step's measures and the numbers of `others`, which are returned, at once.
        """
        unchecked, self.unchecked = self.unchecked, []
        found = self.step_log.read(*(losses for _, losses in unchecked), *others)
        for (names, _), losses in zip(unchecked, found, strict=False):
            if not all(map(math.isfinite, losses)):
                raise InputError(
                    f"the loss is {losses} at step {self.state.global_step + 1}",
                    where=", ".join(names),
                    fix="lower train.learning_rate, or look at these prompts with `perpo inspect`",
                )
        return found[len(unchecked) :]

    def _clip_grad_norm(self, model: nn.Module) -> float | None:
        """Clip gradients; one that is not finite stops the run before it reaches the weights."""
        norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        if norm is None:
            self._check_losses()
            return None
        ((found,),) = self._check_losses(torch.as_tensor(norm))
        if not math.isfinite(found):  # ZeRO: inf, step skipped
            raise InputError(
                f"the gradient's norm is {found} at step {self.state.global_step + 1}",
                where=", ".join(self.names),
                fix="lower train.learning_rate, or look at these prompts with `perpo inspect`; the "
                "same command resumes from the last checkpoint",
            )
        return found

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the step's diagnostics to each line of the log."""
        if "loss" in logs:
            logs.update(self.step_log.close())
        super().log(logs, *args, **kwargs)

    @property
    def policy(self) -> Any:
        """The transformers or PEFT model in the `ListPolicy` that is trained."""
        policy: Any = self.model
        return policy.model

    def save_trained(self, directory: str | Path) -> None:
        """Write the trained weights in the first process; an adapter in fp32, as the optimiser
        keeps it. Every process must call it."""
        masters = whole_masters(self.policy) if self.is_deepspeed_enabled else self._masters()
        if self.world.is_first:
            save_trained(self.policy, Path(directory), masters)

    def _masters(self) -> dict[Tensor, Tensor]:
        return optimizer.masters() if (optimizer := self._master_adamw()) else {}

    def _master_adamw(self) -> MasterAdamW | None:
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return optimizer if isinstance(optimizer, MasterAdamW) else None

    def _weights_held(self) -> set[Tensor]:
        """The weights that the optimiser's part of a checkpoint restores."""
        return optimizer.held() if (optimizer := self._master_adamw()) else set()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save a checkpoint's weights: those trained ones that the optimiser does not hold.

        The base is known by its identity.
        """
        directory = output_dir or str(self.args.output_dir)
        if self.is_deepspeed_enabled:
            self.save_trained(directory)
        elif self.world.is_first:
            held = self._weights_held()
            save_trained(self.policy, Path(directory), self._masters(), leave_out=held)

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
        if has_trained(Path(resume_from_checkpoint)):
            load_trained(self.policy, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the optimiser, and with it the weights whose masters it holds."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or self.is_deepspeed_enabled or has_trained(Path(checkpoint)):
            return
        held = self._weights_held()
        if any(p.requires_grad and p not in held for p in self.policy.parameters()):
            raise ArtifactError(
                "the checkpoint lacks weights that were trained",
                where=checkpoint,
                fix="remove it: the same command resumes from the checkpoint before it",
            )

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        """Prepare as the Trainer does, but load a ZeRO checkpoint without frozen weights."""
        by_zero = resume_from_checkpoint if self.is_deepspeed_enabled else None
        by_trainer = None if by_zero else resume_from_checkpoint
        prepared = super()._prepare_for_training(  # type: ignore[no-untyped-call]
            max_steps, train_dataloader, by_trainer
        )
        if by_zero is not None:
            load_zero_checkpoint(self.model_wrapped, by_zero)
            self._load_optimizer_and_scheduler(by_zero)
        return prepared
