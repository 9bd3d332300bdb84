"""The CUDA cards of this machine, and whether a model can be computed on them as it is configured.

Checked before anything is downloaded or loaded. AMD cards (ROCm builds of torch) have other
numbers for what they can do, so only their memory is looked at.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perpo_pipeline.errors import ConfigError, first_line
from perpo_pipeline.machine import GIB

if TYPE_CHECKING:
    from perpo_pipeline.config.model import ModelConfig

BFLOAT16 = (8, 0)  # compute capability: Ampere; older cards convert to float32 and are slow
# bitsandbytes' least compute capability (its README, "Accelerator support").
QUANTIZATION = {"nf4": (6, 0), "int8": (7, 5)}
UNLIKE = 0.05  # share of the memory: cards of one kind differ by less
TOO_OLD = re.compile(r"driver on your system is too old \(found version (\d+)\)")


@dataclass(frozen=True)
class Card:
    """A card as the driver names it; `capability` is CUDA's compute capability, memory in bytes."""

    name: str
    capability: tuple[int, int]
    memory: int

    def __str__(self) -> str:
        return f"{self.name} ({self.memory / GIB:.0f} GiB)"


def visible_cards() -> list[Card]:
    """The cards that this process sees, in the order of their numbers; none without CUDA."""
    import torch

    if not _has_cuda():
        return []
    properties = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [Card(one.name, (one.major, one.minor), one.total_memory) for one in properties]


def check_cards(model: "ModelConfig", number: int = 1) -> None:
    """Raise ConfigError if the model cannot be computed on the first `number` cards.

    The causes are a missing card or one that torch cannot use (`model.device: cuda`), a driver that
    is too old (also `auto`, which would otherwise use the CPU without a word), and a card without
    the number format or the quantisation that the settings ask for.
    """
    if model.device == "cpu":
        return
    cards = visible_cards()
    if not cards:
        _check_driver(model.device)
    format_ = "bfloat16" if model.dtype == "auto" else model.dtype
    for place, card in enumerate(cards[:number]):
        check_card(card, format_, model.quantization, place=place, chosen=model.dtype)


def check_card(
    card: Card, dtype: str, quantization: str | None, *, place: int = 0, chosen: str = ""
) -> None:
    """Raise ConfigError if the card cannot compute in `dtype` or with the quantisation.

    `chosen` is the value of `model.dtype`: auto stands for bfloat16.
    """
    import torch

    if torch.version.cuda is None:
        return
    has = ".".join(map(str, card.capability))
    shown = f"card {place}, {card.name} (compute capability {has}),"
    if not _is_in_build(card.capability, torch.cuda.get_arch_list()):
        raise ConfigError(
            f"{shown} is not among those that torch {torch.__version__} was built for: "
            f"{', '.join(torch.cuda.get_arch_list())}",
            fix="install a build of torch for this card, choose another card with "
            "CUDA_VISIBLE_DEVICES, or set model.device: cpu",
        )
    if dtype == "bfloat16" and card.capability < BFLOAT16:
        why = ", which model.dtype: auto means on a card" if chosen == "auto" else ""
        raise ConfigError(
            f"{shown} does not compute in bfloat16{why}",
            fix="set model.dtype: float32 (twice the memory; the results count as others), or use "
            "a card of compute capability 8.0 or higher",
        )
    if quantization is not None and card.capability < QUANTIZATION[quantization]:
        needs = ".".join(map(str, QUANTIZATION[quantization]))
        others = [name for name, least in QUANTIZATION.items() if least <= card.capability]
        instead = f"set model.quantization: {others[0]}" if others else "remove model.quantization"
        raise ConfigError(
            f"{shown} cannot compute with model.quantization: {quantization}, which needs compute "
            f"capability {needs}",
            fix=f"{instead}, or use another card",
        )


def why_no_cuda() -> str | None:
    """Why torch uses no card here, in one line; None if it does."""
    import torch

    if _has_cuda():
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is a build without CUDA"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        text = first_line(error)
        found = TOO_OLD.search(text)
        return _driver_fault(int(found[1])) if found else text.split(". Please")[0]
    return "no card is visible (CUDA_VISIBLE_DEVICES may hide it)"


def unlike_cards(cards: Sequence[Card]) -> str | None:
    """What follows if cards that work together differ in kind or memory; None if they do not.

    No error: the result is the same but for rounding, as on any other card.
    """
    memories = [card.memory for card in cards]
    is_one_kind = len({card.name for card in cards}) <= 1
    if not cards or (is_one_kind and min(memories) >= (1 - UNLIKE) * max(memories)):
        return None
    shown = ", ".join(f"{place}: {card}" for place, card in enumerate(cards))
    return (
        f"the {len(cards)} cards are unlike: {shown}. The smallest decides what fits, and all wait "
        "for the slowest; CUDA_VISIBLE_DEVICES chooses cards"
    )


def _has_cuda() -> bool:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of a driver, and `why_no_cuda` reports it
        return torch.cuda.is_available()


def _check_driver(device: str) -> None:
    """Raise if no card can be used, unless `device` is auto and there is none."""
    why = why_no_cuda()
    is_old = why is not None and "driver is too old" in why
    if why is None or (device == "auto" and not is_old):
        return
    update = "update the NVIDIA driver, or install a build of torch for an older CUDA; " * is_old
    build = "" if is_old else "install a CUDA build of torch if there is a card; "
    what = (
        "device is cuda, but torch sees no CUDA device"
        if device == "cuda"
        else ("there is a card that torch cannot use")
    )
    raise ConfigError(
        f"{what}: {why}",
        fix=f"{update}{build}model.device: cpu computes without a card",
    )


def _driver_fault(version: int) -> str:
    """`version` is what the driver supports: 12040 is CUDA 12.4."""
    import torch

    return (
        f"the NVIDIA driver is too old: it supports CUDA {version // 1000}.{version % 1000 // 10}, "
        f"and torch {torch.__version__} was built for CUDA {torch.version.cuda}"
    )


def _is_in_build(capability: tuple[int, int], built_for: Sequence[str]) -> bool:
    """Whether the build has code for the card: binaries of its generation, or PTX of an older one.

    `built_for` is torch's list, such as sm_80 and compute_90; empty if torch does not know.
    """
    own = 10 * capability[0] + capability[1]
    for built in built_for:
        kind, _, digits = built.partition("_")
        number = int(re.sub(r"\D", "", digits))  # sm_90a
        if number <= own and (kind == "compute" or number // 10 == capability[0]):
            return True
    return not built_for
