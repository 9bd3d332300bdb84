"""Diagnostics of each optimiser step, over all processes of the run.

Reading a number from the device makes the host wait for it, so they are read together: once per
step in a single process, twice in several.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from perpo_pipeline.machine import GIB
from perpo_pipeline.train.batches import TrainingBatch
from perpo_pipeline.train.losses import diagnose_lists
from perpo_pipeline.train.processes import World
from perpo_pipeline.train.throughput import FlopCounter, measured_peak

MEASURED = ("reward_accuracy", "implicit_margin", "best_logp", "worst_logp")


@dataclass
class _Sums:
    """Sums over the forwards of a step; `measured` has the sum and count of each measure, then of
    the KL."""

    tokens: float = 0.0
    flops: float = 0.0
    measured: list[float] = field(default_factory=lambda: [0.0] * (2 * len(MEASURED) + 2))


class StepLog:
    """Adds up the forwards of a step, and the processes when the step is closed."""

    def __init__(self, model: nn.Module, device: torch.device, world: World) -> None:
        on_cuda = device.type == "cuda"
        self.world = world
        self.flops_of = FlopCounter(model) if on_cuda else None
        dtype = next(model.parameters()).dtype
        self.peak = measured_peak(device, dtype) if on_cuda else 0.0
        self.clock = time.monotonic()
        self.sums = _Sums()
        self.unread: list[Tensor] = []  # on the device

    def count(self, batch: TrainingBatch) -> None:
        """Add the work of one forward; `batch` is on the CPU, where counting makes nobody wait."""
        self.sums.tokens += batch.lists.num_packed
        self.sums.flops += self.flops_of.count(batch.lists) if self.flops_of else 0.0

    def add(self, logps: Tensor, batch: TrainingBatch) -> None:
        """Add one forward's log-probabilities; their measures stay on the device."""
        logps, _ = batch.split(logps)
        lists = diagnose_lists(
            logps,
            batch.ref_logps,
            batch.rewards,
            counts=batch.counts,
            mask=batch.mask,
            ties=batch.ties,
        )
        weights = batch.counts * batch.mask
        found: list[Tensor] = []
        for name in MEASURED:
            values = getattr(lists, name)
            found += [values.nansum(), values.isfinite().sum()]
        found += [((batch.ref_logps - logps) * weights).sum(), weights.sum()]
        self.unread.append(torch.stack([number.double() for number in found]))

    def read(self, *others: Tensor) -> list[list[float]]:
        """Read what was added, and the numbers of each of `others`, which are returned."""
        found = read_numbers([*self.unread, *others])
        for measured in found[: len(self.unread)]:
            self.sums.measured = [a + b for a, b in zip(self.sums.measured, measured, strict=True)]
        numbers, self.unread = found[len(self.unread) :], []
        return numbers

    def close(self) -> dict[str, float]:
        """The step's figures, over the lists of all processes since the last call.

        They are the means of the measures, packed tokens and packed tokens per second, and on CUDA
        the MFU and the most memory that any process has taken since the start. `kl` estimates
        KL(reference || policy) in nats on the sampled completions. Every process must call it; all
        get the same figures except the time.
        """
        self.read()
        now = time.monotonic()
        seconds, self.clock = max(now - self.clock, 1e-9), now
        tokens, flops, *measured = self.world.sum(
            [self.sums.tokens, self.sums.flops, *self.sums.measured]
        )
        self.sums = _Sums()
        found = {"tokens": int(tokens), "tokens_per_s": tokens / seconds}
        if self.peak:
            taken = self.world.max(torch.cuda.max_memory_allocated())
            found["peak_memory_gib"] = taken / GIB
            found["mfu"] = flops / seconds / (self.peak * self.world.size)
        if measured[-1]:
            for at, name in enumerate((*MEASURED, "kl")):
                total, count = measured[2 * at : 2 * at + 2]
                found[name] = total / count if count else float("nan")
        return found


def read_numbers(tensors: Sequence[Tensor]) -> list[list[float]]:
    """The numbers of each tensor, flattened; the host waits for the device once for all."""
    if not tensors:
        return []
    numbers = iter(torch.cat([tensor.detach().double().flatten() for tensor in tensors]).tolist())
    return [list(itertools.islice(numbers, tensor.numel())) for tensor in tensors]
