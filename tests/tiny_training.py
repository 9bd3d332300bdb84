"""Log-probabilities and gradients of a tiny model with an adapter, to compare ways to compute."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tiny_models import noise_image
from torch import Tensor

from perpo_pipeline.config.train import TrainSettings
from perpo_pipeline.train.engine import ready_model
from perpo_pipeline.train.scope import make_trainable
from perpo_pipeline.train.shared_prefix import CompletionList, pack_lists, packed_logps
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.models import Vlm
from perpo_pipeline.vlm.prompts import encode_prompt

LORA = {"rank": 4, "alpha": 12}  # a scale that is no power of two
LENGTHS = [[5, 9, 2, 7], [1, 12], [4, 4, 3]]  # tokens of each completion


def trainable_vlm(
    directory: Path, levers: Sequence[str] = (), dtype: str = "float32", **settings: Any
) -> Vlm:
    """Prepared as `perpo train` does, in training mode; the adapter's B is not zero."""
    vlm = load_vlm(resolve_model(str(directory)), dtype=dtype, device="cpu")
    chosen = TrainSettings.model_validate({"lora": LORA, "levers": list(levers), **settings})
    ready_model(vlm, "shared-prefix", chosen)
    return add_adapter(vlm, chosen)


def add_adapter(vlm: Vlm, settings: TrainSettings) -> Vlm:
    """Attach an adapter that changes the model, in training mode."""
    torch.manual_seed(3)
    vlm.model = make_trainable(vlm, settings).train()
    for name, parameter in vlm.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return vlm


def completions_of(vlm: Vlm) -> Callable[[int], list[int]]:
    """Makes random completions of a given length, end token included; each call gives another."""
    generator = torch.Generator().manual_seed(0)

    def completion(length: int) -> list[int]:
        words = torch.randint(10, 290, (length - 1,), generator=generator)
        return [*words.tolist(), vlm.eos_token_ids[0]]

    return completion


def uneven_lists(vlm: Vlm) -> list[CompletionList]:
    """Three lists with different prefixes, sizes and lengths; one completion has a single token."""
    completion = completions_of(vlm)
    return [
        CompletionList(
            encode_prompt(vlm, noise_image(i), "where" + "?" * i), [completion(n) for n in row]
        )
        for i, row in enumerate(LENGTHS)
    ]


def run(vlm: Vlm, num: int = 3, *, one_row: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """(B, N) log-probabilities of `uneven_lists`, and their gradients."""
    logps = packed_logps(vlm.model, pack_lists(vlm, uneven_lists(vlm)[:num], one_row=one_row))
    return with_gradients(vlm, logps)


def with_gradients(vlm: Vlm, logps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The log-probabilities, and gradients of a sum that weights each of them otherwise."""
    (logps * torch.arange(1.0, 1 + logps.numel()).view_as(logps)).sum().backward()
    named = vlm.model.named_parameters()
    found = {name: p.grad.float().clone() for name, p in named if p.grad is not None}
    vlm.model.zero_grad()
    return logps.detach(), found


def assert_same(
    ours: tuple[Tensor, dict[str, Tensor]], plain: tuple[Tensor, dict[str, Tensor]]
) -> None:
    torch.testing.assert_close(ours[0], plain[0], atol=1e-4, rtol=0)
    assert ours[1].keys() == plain[1].keys() and len(plain[1]) > 0
    for name, gradient in ours[1].items():
        assert plain[1][name].norm() > 0
        assert (gradient - plain[1][name]).norm() < 1e-4 * plain[1][name].norm(), name
