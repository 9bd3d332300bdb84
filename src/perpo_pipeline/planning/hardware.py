"""The machine that a plan is for: this one, or one that `--hardware` describes."""

import functools
import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.machine import GIB, cores, memory_bytes
from perpo_pipeline.suggestions import did_you_mean
from perpo_pipeline.vlm.cards import visible_cards

_DESCRIBED = re.compile(r"(?P<name>.+?)(?:x(?P<count>[1-9][0-9]{0,3}))?")


@dataclass(frozen=True)
class Hardware:
    """`count` devices of one kind; `memory` in bytes, `flops` per second and `bandwidth` in bytes
    per second of each, None where they are not published. `here`: it is this machine.
    """

    label: str
    count: int
    memory: float
    flops: float | None
    bandwidth: float | None
    source: str
    here: bool
    is_gpu: bool = True

    def __str__(self) -> str:
        return self.label if self.count == 1 else f"{self.count} x {self.label}"


@functools.cache
def published() -> dict[str, Any]:
    """The figures of published.toml."""
    text = resources.files("perpo_pipeline.planning").joinpath("published.toml").read_text("utf-8")
    return tomllib.loads(text)


def describe_hardware(text: str) -> Hardware:
    """The hardware that NAME or NAMExN describes; raises ConfigError with the known names."""
    known: dict[str, Any] = published()["hardware"]
    text = text.strip().lower()
    match = _DESCRIBED.fullmatch(text)
    name = text if text in known or match is None else match["name"]
    if name not in known:
        raise ConfigError(
            f"--hardware {text}: no such hardware{did_you_mean(name, known)}",
            fix=f"give NAME or NAMExN (h100x8), with one of {', '.join(known)}",
        )
    count = 1 if name == text or match is None else int(match["count"] or 1)
    return _card(known[name], count, here=False)


def _card(record: dict[str, Any], count: int, *, here: bool) -> Hardware:
    return Hardware(
        record["label"],
        count,
        record["memory_gib"] * GIB,
        record["tflops"] * 1e12,
        record["bandwidth"] * 1e9,
        f"published peak ({record['source']})",
        here,
    )


def find_card(driver_name: str) -> dict[str, Any] | None:
    """The published figures of the card that the driver names so; None for other cards.

    A laptop's card, a Ti or a part of a card (MIG) has other figures than the card that its name
    begins with.
    """
    if re.search(r"\b(Laptop|Max-Q|Ti|NVL|MIG|PCIE-40GB|RTX 4090 D)\b", driver_name):
        return None
    records: list[dict[str, Any]] = list(published()["hardware"].values())
    fits = [one for one in records if re.search(rf"\b{one['match']}\b", driver_name)]
    return max(fits, key=lambda one: len(one["match"]), default=None)


def this_machine(device: str) -> Hardware:
    """The GPUs that torch sees, unless the run's `model.device` is cpu or there are none."""
    cards = [] if device == "cpu" else visible_cards()
    if not cards:
        number = cores()
        label = f"{number} CPU core{'s' * (number != 1)}"
        return Hardware(label, 1, memory_bytes(), None, None, "measured", here=True, is_gpu=False)
    record = find_card(cards[0].name)
    return Hardware(
        cards[0].name,
        len(cards),
        min(card.memory for card in cards),
        record["tflops"] * 1e12 if record else None,
        record["bandwidth"] * 1e9 if record else None,
        f"published peak ({record['source']})" if record else "no published peak known",
        here=True,
    )
