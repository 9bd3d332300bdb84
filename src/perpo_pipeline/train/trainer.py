"""transformers' Trainer over lists: it brings checkpoints, resume, logging and distributed launch.

Ours are the loss, the split of a step into forwards of a bounded number of tokens, an optimiser
that keeps fp32 masters of bf16 weights, what a checkpoint holds (what is trained, not the base),
and a marker file that makes a checkpoint count only when it is whole.
"""

import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from perpo_pipeline.adapters import load_trained, save_trained
from perpo_pipeline.atomic import write_atomically
from perpo_pipeline.config import TrainSettings
from perpo_pipeline.errors import InputError
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
    TrainingBatch,
    TrainingList,
    num_workers,
    raise_failure,
)
from perpo_pipeline.train.losses import (
    ListDiagnostics,
    best_completion_nll,
    diagnose_lists,
    dpo_loss,
    lipo_lambda_loss,
    lipo_loss,
    perpo_loss,
)
from perpo_pipeline.train.master_weights import MasterAdamW
from perpo_pipeline.train.progress import Progress
from perpo_pipeline.train.scope import lora_config, unfreeze
from perpo_pipeline.train.throughput import FlopCounter, measured_peak

if TYPE_CHECKING:
    from perpo_pipeline.models import Vlm

WHOLE = "whole"
KEPT_CHECKPOINTS = 2

LIST_LOSSES: dict[str, Callable[..., Tensor]] = {
    "perpo": perpo_loss,
    "lipo": lipo_loss,
    "lipo-lambda": lipo_lambda_loss,
    "dpo": dpo_loss,
}


def list_losses(logps: Tensor, batch: TrainingBatch, settings: TrainSettings) -> Tensor:
    """The loss of each list of a batch, `(B, N)` log-probabilities -> `(B,)`; not for SFT."""
    extra = {"gamma": settings.gamma} if settings.method == "perpo" else {}
    losses = LIST_LOSSES[settings.method](
        logps, batch.ref_logps, batch.rewards, beta=settings.beta, counts=batch.counts,
        mask=batch.lists.mask, label_smoothing=settings.label_smoothing, **extra,
    )  # fmt: skip
    if settings.sft_weight:
        anchor = best_completion_nll(
            logps, batch.rewards, batch.lists.num_tokens, counts=batch.counts, mask=batch.lists.mask
        )
        losses = losses + settings.sft_weight * anchor
    return losses


class StepLog:
    """What the losses of an optimiser step cannot tell, gathered over its forwards."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        on_cuda = device.type == "cuda"
        self.flops_of = FlopCounter(model) if on_cuda else None
        dtype = next(model.parameters()).dtype
        self.peak = measured_peak(device, dtype) if on_cuda else 0.0
        self.clock = time.monotonic()
        self._restart()

    def _restart(self) -> None:
        self.tokens, self.flops = 0, 0.0
        self.lists: list[ListDiagnostics] = []
        self.kl: list[tuple[float, float]] = []  # sum over completions, and how many

    def add(self, logps: Tensor | None, batch: TrainingBatch) -> None:
        """One forward; `logps` is None where there is no preference (SFT)."""
        self.tokens += batch.lists.num_packed
        self.flops += self.flops_of.count(batch.lists) if self.flops_of else 0.0
        if logps is None:
            return
        self.lists.append(
            diagnose_lists(
                logps, batch.ref_logps, batch.rewards, counts=batch.counts, mask=batch.lists.mask
            )
        )
        weights = batch.counts * batch.lists.mask
        gap = (batch.ref_logps - logps) * weights
        self.kl.append((float(gap.sum()), float(weights.sum())))

    def close(self) -> dict[str, float]:
        """Means over the lists since the last call, tokens a second, and on CUDA the MFU.

        `kl` estimates KL(reference || policy), in nats, on the sampled completions.
        """
        now = time.monotonic()
        seconds, self.clock = max(now - self.clock, 1e-9), now
        found = {"tokens_per_s": self.tokens / seconds}
        if self.peak:
            found["mfu"] = self.flops / seconds / self.peak
        if self.lists:
            for name in ("reward_accuracy", "implicit_margin", "best_logp", "worst_logp"):
                values = torch.cat([getattr(diagnosis, name) for diagnosis in self.lists])
                found[name] = float(values.nanmean())
            found["kl"] = sum(gap for gap, _ in self.kl) / sum(count for _, count in self.kl)
        self._restart()
        return found


class ListTrainer(Trainer):
    """Trains a `ListPolicy` with one of the list losses."""

    def __init__(self, settings: TrainSettings, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings = settings
        self.step_log = StepLog(self.policy, self.args.device)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *_: Any) -> Tensor:
        """Forward and backward of one step's lists, batch after batch; the step's loss."""
        model.train()
        raise_failure(inputs)
        batches: Sequence[TrainingBatch] = inputs["batches"]
        self.prompt_ids = [prompt_id for batch in batches for prompt_id in batch.prompt_ids]
        sft = self.settings.method == "sft"
        total = sum(_weight(batch, sft) for batch in batches)
        losses = []
        for batch in batches:
            with memory_explained(self.settings, len(batch.prompt_ids)):
                losses.append(self._forward_backward(model, batch.to(self.args.device), total))
        return torch.stack(losses).sum()

    def _forward_backward(self, model: nn.Module, batch: TrainingBatch, total: float) -> Tensor:
        """This batch's share of the step's loss: a mean over lists, for SFT over target tokens."""
        logps = model(batch.lists)
        if self.settings.method == "sft":
            losses = -logps.sum(1)
            self.step_log.add(None, batch)
        else:
            losses = list_losses(logps, batch, self.settings)
            self.step_log.add(logps.detach(), batch)
        if not bool(losses.isfinite().all()):
            raise InputError(
                f"the loss is {losses.tolist()} at step {self.state.global_step + 1}",
                where=f"prompts {', '.join(batch.prompt_ids)}",
                fix="lower train.learning_rate, or look at these prompts with `perpo inspect`",
            )
        loss: Tensor = losses.sum() / total
        self.accelerator.backward(loss)
        return loss.detach()

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip; a gradient that is not finite stops the run before it reaches the weights."""
        norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        if norm is not None and not math.isfinite(float(norm)):
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
        """Write what was trained; an adapter in fp32, as the optimiser keeps it."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        masters = optimizer.masters() if isinstance(optimizer, MasterAdamW) else {}
        save_trained(self.policy, Path(directory), masters)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """A checkpoint holds what is trained alone: the base is known by its identity."""
        self.save_trained(output_dir or str(self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(self.policy, Path(resume_from_checkpoint))


def _weight(batch: TrainingBatch, sft: bool) -> float:
    """What a step's loss is a mean over: its lists, or for SFT its target tokens."""
    return float(batch.lists.num_tokens.sum()) if sft else len(batch.prompt_ids)


class _MarkWhole(TrainerCallback):
    """Writes the marker once every file of a checkpoint is there."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            directory = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            write_atomically(directory / WHOLE, lambda sink: sink.write(b"whole\n"))


def fit(
    vlm: "Vlm", lists: Sequence[TrainingList], settings: TrainSettings, preprocess: str,
    forward: Forward, checkpoints: Path, *, name: str = "train", quiet: bool = False,
) -> tuple[ListTrainer, list[dict[str, Any]]]:  # fmt: skip
    """Train on `lists`; goes on after the last whole checkpoint in `checkpoints`.

    Returns the trainer and one log entry an optimiser step. The adapter's first weights, the
    order of the lists and so the result depend on `settings.seed` alone. What `settings.log_to`
    names writes into the folder `logs` beside `checkpoints`.
    """
    torch.manual_seed(settings.seed)
    policy = _trainable(vlm, settings)
    logs = checkpoints.parent / "logs"
    with logging_under(settings.log_to, logs):
        trainer = ListTrainer(
            settings,
            model=ListPolicy(policy),
            args=_arguments(settings, len(lists), checkpoints, vlm.device.type, name),
            train_dataset=ListDataset(lists),
            data_collator=ListCollator(vlm, preprocess, forward, settings.max_tokens_per_step),
            optimizer_cls_and_kwargs=(MasterAdamW, {"lr": settings.learning_rate}),
            callbacks=[_MarkWhole(), Progress(name, quiet), *reporting_callbacks(settings.log_to)],
        )
        for unwanted in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(unwanted)
        trainer.train(resume_from_checkpoint=_last_whole(checkpoints))
    keep_loose_files(checkpoints, logs)
    return trainer, [entry for entry in trainer.state.log_history if "loss" in entry]


def _trainable(vlm: "Vlm", settings: TrainSettings) -> Any:
    """The model with gradients where the settings want them, in the dtype that it computes in."""
    from peft import get_peft_model

    policy: Any = vlm.model
    if settings.tuning == "lora":
        config = lora_config(vlm, settings.lora.rank, settings.lora.alpha, settings.scope)
        # PEFT's own default, an fp32 adapter on a bf16 base, costs a third of the speed.
        policy = get_peft_model(vlm.model, config, autocast_adapter_dtype=False)
    else:
        unfreeze(vlm, settings.scope)
    if settings.gradient_checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    return policy


def _arguments(
    settings: TrainSettings, num_lists: int, checkpoints: Path, device: str, name: str
) -> TrainingArguments:
    steps = math.ceil(num_lists / settings.batch_size) * settings.epochs
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        seed=settings.seed,
        data_seed=settings.seed,
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
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
        use_cpu=device == "cpu",
        dataloader_pin_memory=False,
        dataloader_num_workers=num_workers(settings.num_workers, device),
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # several would be DataParallel: a larger batch
    return arguments


def _scheduler(settings: TrainSettings) -> str:
    if settings.lr_scheduler == "constant" and settings.warmup_ratio > 0:
        return "constant_with_warmup"
    return settings.lr_scheduler


def _last_whole(checkpoints: Path) -> str | None:
    """The newest checkpoint that was saved to the end; torn ones are removed."""
    found = {int(p.name.rsplit("-", 1)[1]): p for p in checkpoints.glob("checkpoint-*")}
    whole = [step for step, path in found.items() if (path / WHOLE).is_file()]
    for step in set(found) - set(whole):
        shutil.rmtree(found[step])
    return str(found[max(whole)]) if whole else None
