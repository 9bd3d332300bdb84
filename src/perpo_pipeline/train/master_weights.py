"""AdamW for modules in bf16: the optimiser's state holds float32 masters of the trained weights.

A bf16 number has 8 significant bits, so an update below 1/512 of a weight is lost to rounding: at a
learning rate of 5e-6 that is nearly every update of every weight above 0.003. Here torch's own
AdamW updates float32 masters, in which small updates add up, and the module gets them rounded.
Forward and backward stay in bf16.

An adapter has hundreds of small matrices, so a step must not cost host time for each: masters and
torch's AdamW are kept between steps, gradients and weights are copied in one call for all.

Simplified: gradients are used as the module has them, summed over micro-batches and clipped in
bf16. Under ZeRO use DeepSpeed's own master weights, not these.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from perpo_pipeline.errors import ArtifactError

MASTER = "master"
CHOSEN = ("params", "foreach", "fused")  # what the AdamW on the masters decides for itself


class MasterAdamW(torch.optim.AdamW):
    """torch's AdamW with all its options, computed on float32 masters of half-precision weights.

    A master starts as a copy of its parameter at the first step that has a gradient for it. From
    then on the module holds the rounded master; anything else written into the module is lost.
    Weights in float32 or wider have no master, and their update is bit-equal to torch's.
    `state_dict` holds the masters too. On CUDA the masters are updated by torch's fused kernel. Do
    not use it with `fused=True` under a GradScaler, which calls the fused kernel directly; bf16
    needs no GradScaler.
    """

    # torch's AdamW on the masters; None until the first step, and after new state was loaded.
    _adamw: torch.optim.AdamW | None = None
    _masters: Mapping[Tensor, Tensor]  # of the parameters in it; a float32 parameter is its own

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update masters and module, with torch's signature."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        trained = [p for p in self._parameters() if p.grad is not None]
        new = [p for p in trained if p not in self.state]
        if self._adamw is None or new:
            known = {*self.state, *new}
            self._masters = {p: self._master(p) for p in self._parameters() if p in known}
            self._adamw = self._adamw_on(self._masters)
        self._copy_settings(self._adamw)
        self._step_on_masters(self._adamw, [p for p in trained if _needs_master(p)])
        for p in new:  # a parameter and its master share one state
            self.state[p] = self._adamw.state[self._masters[p]]
            if _needs_master(p):
                self.state[p][MASTER] = self._masters[p]
        return loss

    def _step_on_masters(self, adamw: torch.optim.AdamW, rounded: list[Tensor]) -> None:
        """Update all masters; those of `rounded` get their gradients and are copied back."""
        masters = [self._masters[p] for p in rounded]
        grads = [torch.empty_like(master) for master in masters]
        if rounded:
            torch._foreach_copy_(grads, [p.grad for p in rounded if p.grad is not None])
        for master, grad in zip(masters, grads, strict=True):
            master.grad = grad
        adamw.step()
        for master in masters:
            master.grad = None
        if rounded:
            torch._foreach_copy_(rounded, masters)

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a `state_dict`, bit by bit; the module gets its masters, rounded.

        Raises ArtifactError if the state was saved in another precision, and ValueError if the
        groups do not fit.
        """
        # torch casts loaded state to the parameter's dtype, which would round masters and moments.
        # So it loads them for empty stand-in parameters of the masters' dtype.
        stand_ins = {
            p: torch.empty(0, dtype=_master_dtype(p), device=p.device) for p in self._parameters()
        }
        adamw = torch.optim.AdamW(self._groups_of(stand_ins))
        adamw.load_state_dict(state_dict)
        loaded = {p: adamw.state[s] for p, s in stand_ins.items() if s in adamw.state}
        if any((MASTER in state) != _needs_master(p) for p, state in loaded.items()):
            raise ArtifactError(
                "the optimiser's saved state has another precision",
                fix="train in the checkpoint's precision, or remove the checkpoint",
            )
        super().load_state_dict({**state_dict, "state": {}})
        self._adamw = None
        for p, state in loaded.items():
            self.state[p] = state
            if MASTER in state:
                p.copy_(state[MASTER])

    def masters(self) -> dict[Tensor, Tensor]:
        """Each parameter's unrounded value, in float32 or wider, without a gradient.

        These are the live tensors, not copies, unless no step has been taken yet.
        """
        return {p: self._master(p).detach() for p in self._parameters()}

    def held(self) -> set[Tensor]:
        """The parameters whose masters `state_dict` has, so that it restores them."""
        return {p for p, state in self.state.items() if MASTER in state}

    def _master(self, p: Tensor) -> Tensor:
        """The master in the state, or a new one; the parameter itself if it needs none."""
        if p in self.state and MASTER in self.state[p]:
            master: Tensor = self.state[p][MASTER]
            return master
        return p.detach().to(_master_dtype(p)) if _needs_master(p) else p

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _adamw_on(self, masters: Mapping[Tensor, Tensor]) -> torch.optim.AdamW:
        """torch's AdamW on masters, with the state that their parameters have so far."""
        adamw = torch.optim.AdamW(self._groups_of(masters))
        for group in adamw.param_groups:
            if group["fused"] is None and group["foreach"] is None:
                group["fused"] = all(master.is_cuda for master in group["params"]) or None
        on_device = {m for g in adamw.param_groups if g["fused"] for m in g["params"]}
        for p, master in masters.items():
            if p in self.state:
                adamw.state[master] = state = self.state[p]
                state["step"] = state["step"].to(master.device if master in on_device else "cpu")
        return adamw

    def _copy_settings(self, adamw: torch.optim.AdamW) -> None:
        """Pass on what may change between steps, such as the scheduler's learning rate."""
        for ours, theirs in zip(self.param_groups, adamw.param_groups, strict=True):
            theirs.update({name: value for name, value in ours.items() if name not in CHOSEN})

    def _groups_of(self, tensors: Mapping[Tensor, Tensor]) -> list[dict[str, Any]]:
        """The settings of each group, with `tensors` in place of its parameters."""
        return [
            {**group, "params": [tensors[p] for p in group["params"] if p in tensors]}
            for group in self.param_groups
        ]


def _needs_master(p: Tensor) -> bool:
    return p.dtype in (torch.bfloat16, torch.float16)


def _master_dtype(p: Tensor) -> torch.dtype:
    return torch.float32 if _needs_master(p) else p.dtype
