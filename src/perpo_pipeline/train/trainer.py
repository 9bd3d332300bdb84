"""transformers' Trainer over lists: it brings checkpoints, resume, logging and distributed launch.

Only three things are ours: the loss, what a checkpoint holds (the adapter, not the base), and a
marker file that makes a checkpoint count only when it is whole.
"""

import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from perpo_pipeline.atomic import write_atomically
from perpo_pipeline.config import TrainSettings
from perpo_pipeline.train.lists import ListCollator, TrainingBatch, TrainingList
from perpo_pipeline.train.losses import (
    diagnose_lists,
    dpo_loss,
    lipo_lambda_loss,
    lipo_loss,
    perpo_loss,
    sft_loss,
)
from perpo_pipeline.train.shared_prefix import ListPolicy

if TYPE_CHECKING:
    from perpo_pipeline.models import Vlm

WHOLE = "whole"
KEPT_CHECKPOINTS = 2


Objective = Callable[[Tensor, TrainingBatch, TrainSettings], Tensor]


def _perpo(logps: Tensor, batch: TrainingBatch, s: TrainSettings) -> Tensor:
    losses = perpo_loss(
        logps, batch.ref_logps, batch.rewards, beta=s.beta, gamma=s.gamma, counts=batch.counts,
        mask=batch.lists.mask,
    )  # fmt: skip
    return losses.mean()


def _of_pairs(loss: Callable[..., Tensor]) -> Objective:
    """A sibling of PerPO's loss that has no gamma."""

    def objective(logps: Tensor, batch: TrainingBatch, s: TrainSettings) -> Tensor:
        losses = loss(
            logps, batch.ref_logps, batch.rewards, beta=s.beta, counts=batch.counts,
            mask=batch.lists.mask,
        )  # fmt: skip
        return losses.mean()

    return objective


def _sft(logps: Tensor, batch: TrainingBatch, s: TrainSettings) -> Tensor:
    """Mean over all target tokens of the micro-batch."""
    num_tokens = batch.lists.num_tokens
    return (sft_loss(logps, num_tokens) * num_tokens).sum() / num_tokens.sum()


OBJECTIVES: dict[str, Objective] = {
    "perpo": _perpo,
    "lipo": _of_pairs(lipo_loss),
    "lipo-lambda": _of_pairs(lipo_lambda_loss),
    "dpo": _of_pairs(dpo_loss),
    "sft": _sft,
}


def _diagnose(logps: Tensor, batch: TrainingBatch) -> dict[str, float]:
    """Means over the lists; `kl` estimates KL(reference || policy) on the sampled completions."""
    found = diagnose_lists(
        logps, batch.ref_logps, batch.rewards, counts=batch.counts, mask=batch.lists.mask
    )
    weights = batch.counts * batch.lists.mask
    kl = ((batch.ref_logps - logps) * weights).sum() / weights.sum()
    return {
        "reward_accuracy": float(found.reward_accuracy.nanmean()),
        "implicit_margin": float(found.implicit_margin.nanmean()),
        "best_logp": float(found.best_logp.nanmean()),
        "worst_logp": float(found.worst_logp.nanmean()),
        "kl": float(kl),
    }


class ListDataset(Dataset[TrainingList]):
    """The training lists, by number."""

    def __init__(self, lists: Sequence[TrainingList]) -> None:
        self.lists = lists

    def __len__(self) -> int:
        return len(self.lists)

    def __getitem__(self, index: int) -> TrainingList:
        return self.lists[index]


class ListTrainer(Trainer):
    """Trains a `ListPolicy` with one of the list losses."""

    def __init__(self, settings: TrainSettings, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.objective: Objective = OBJECTIVES[settings.method]
        self.settings = settings
        self.diagnostics: list[dict[str, float]] = []
        self.tokens, self.clock = 0, time.monotonic()

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Mean loss of the lists of one micro-batch."""
        batch: TrainingBatch = inputs["batch"].to(self.args.device)
        logps = model(batch.lists)
        if self.settings.method != "sft":
            self.diagnostics.append(_diagnose(logps.detach(), batch))
        self.tokens += int((batch.lists.segments >= 0).sum())
        return self.objective(logps, batch, self.settings)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add what the losses cannot tell to each line of the log."""
        if "loss" in logs:
            now = time.monotonic()
            logs["tokens_per_s"] = self.tokens / max(now - self.clock, 1e-9)
            for key in self.diagnostics[0] if self.diagnostics else ():
                logs[key] = sum(d[key] for d in self.diagnostics) / len(self.diagnostics)
            self.diagnostics, self.tokens, self.clock = [], 0, now
        super().log(logs, *args, **kwargs)

    @property
    def adapter(self) -> Any:
        """The PEFT model inside the policy that is trained."""
        policy: Any = self.model
        return policy.model

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """A checkpoint holds the adapter alone: the base is known by its identity."""
        self.adapter.save_pretrained(output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from peft import set_peft_model_state_dict

        weights = load_file(os.path.join(resume_from_checkpoint, "adapter_model.safetensors"))
        set_peft_model_state_dict(self.adapter, weights)


class _MarkWhole(TrainerCallback):
    """Writes the marker once every file of a checkpoint is there."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            directory = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            write_atomically(directory / WHOLE, lambda sink: sink.write(b"whole\n"))


class _Progress(TrainerCallback):
    """A bar with loss, accuracy, tokens a second and time left, on stderr."""

    def __init__(self, what: str, quiet: bool) -> None:
        self.what, self.quiet = what, quiet

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        from tqdm import tqdm

        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.what,
                        disable=self.quiet or None, leave=False, dynamic_ncols=True)  # fmt: skip

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: dict[str, float] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        shown = {k: (logs or {}).get(k) for k in ("loss", "reward_accuracy", "tokens_per_s")}
        self.bar.set_postfix({k: f"{v:.3g}" for k, v in shown.items() if v is not None})
        self.bar.update(state.global_step - self.bar.n)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar.close()


def fit(
    vlm: "Vlm", lists: Sequence[TrainingList], settings: TrainSettings, preprocess: str,
    checkpoints: Path, *, name: str = "train", quiet: bool = False,
) -> tuple[nn.Module, list[dict[str, Any]]]:  # fmt: skip
    """Train an adapter on `lists`; goes on after the last whole checkpoint in `checkpoints`.

    Returns the PEFT model and one log entry an optimiser step. The adapter's first weights, the
    order of the lists and so the result depend on `settings.seed` alone.
    """
    from peft import get_peft_model

    from perpo_pipeline.models import lora_config

    torch.manual_seed(settings.seed)
    config = lora_config(vlm, settings.lora.rank, settings.lora.alpha, settings.lora.scope)
    policy = get_peft_model(vlm.model, config)
    if settings.gradient_checkpointing:
        policy.enable_input_require_grads()
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    trainer = ListTrainer(
        settings,
        model=ListPolicy(policy),
        args=_arguments(settings, len(lists), checkpoints, vlm.device.type),
        train_dataset=ListDataset(lists),
        data_collator=ListCollator(vlm, preprocess),
    )
    for unwanted in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(unwanted)
    trainer.add_callback(_MarkWhole())
    trainer.add_callback(_Progress(name, quiet))
    trainer.train(resume_from_checkpoint=_last_whole(checkpoints))
    return policy, [entry for entry in trainer.state.log_history if "loss" in entry]


def _arguments(
    settings: TrainSettings, num_lists: int, checkpoints: Path, device: str
) -> TrainingArguments:
    steps = math.ceil(num_lists / settings.batch_size) * settings.epochs
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        seed=settings.seed,
        data_seed=settings.seed,
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=settings.batch_size // settings.micro_batch_size,
        warmup_steps=math.ceil(settings.warmup_ratio * steps),
        lr_scheduler_type=_scheduler(settings),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.checkpoint_every,
        save_total_limit=KEPT_CHECKPOINTS,
        remove_unused_columns=False,
        report_to=settings.log_to or "none",
        use_cpu=device == "cpu",
        dataloader_pin_memory=False,
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
