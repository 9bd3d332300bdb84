"""Let a process of a training fail, or let it compute in another way."""

import errno
import os
from pathlib import Path
from typing import Any


def poison(what: str) -> None:
    """Change this process if it has the rank of `what`, "KIND RANK STEP".

    At that step the loss or the gradient is not finite, or the disk is full (`disk`; also when the
    adapter is written). `chunks` gives each process another number of logits at a time.
    """
    import torch

    from perpo_pipeline.train import shared_prefix
    from perpo_pipeline.train.trainer import ListTrainer

    kind, rank, step = what.split()
    is_meant = rank == os.environ["RANK"]
    if kind == "chunks":
        shared_prefix.LOGIT_BUDGET = 704 * (9 if is_meant else 17)
    forward_backward, save = ListTrainer._forward_backward, torch.save
    save_trained = ListTrainer.save_trained

    def poisoned(self: Any, model: Any, batch: Any, *rest: Any) -> Any:
        if self.state.global_step + 1 == int(step):
            if kind == "loss":
                batch.ref_logps.fill_(float("nan"))
            else:
                backward = self.accelerator.backward
                self.accelerator.backward = lambda loss: backward(loss * float("inf"))
        return forward_backward(self, model, batch, *rest)

    def full(saved: Any, path: Any, *rest: Any, **named: Any) -> Any:
        if f"checkpoint-{step}" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(saved, path, *rest, **named)

    def full_at_the_end(self: Any, directory: Path) -> None:
        if self.state.global_step == self.state.max_steps and "trained" in str(directory):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        save_trained(self, directory)

    if is_meant and kind == "disk":
        torch.save = full
        ListTrainer.save_trained = full_at_the_end  # type: ignore[method-assign]
    elif is_meant:
        ListTrainer._forward_backward = poisoned  # type: ignore[method-assign]
