"""Packed lists in the form that layers with a recurrent state read (vlm/recurrent.py)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from perpo_pipeline.train.layout import PackedList
from perpo_pipeline.vlm.recurrent import PackedSteps, Prefixes


def packed_steps(
    lists: Sequence[PackedList],
    num_places: int,
    device: torch.device | str,
    *,
    left_padding: bool,
) -> PackedSteps:
    """The batches of packed rows with `num_places` = R * T places in all.

    Prefixes of all lists are one batch with `left_padding`, which the layers must take exactly
    (`takes_left_padding`); else those of equal length are. Only with it do all processes make the
    same calls, which they must where weights are sharded (ZeRO-3, FSDP).
    """
    groups: dict[int, list[PackedList]] = {}
    for entry in lists:
        groups.setdefault(0 if left_padding else entry.prefix_tokens, []).append(entry)
    ordered = [entry for group in groups.values() for entry in group]
    back = torch.zeros(num_places, dtype=torch.long)
    prefixes, base = [], 0
    for group in groups.values():
        prefixes.append(_prefixes(group, back, base, device))
        base += prefixes[-1].places.numel()
    counts = [sum(count > 0 for count in entry.inside) for entry in ordered]
    if not any(counts):  # the layers then read any two places as an answer, which nothing uses
        counts[0], answers = 1, torch.zeros(1, 2, dtype=torch.long)
    else:
        answers = _answers(ordered, back, base)
    return PackedSteps(
        prefixes=tuple(prefixes),
        counts=tuple(counts),
        answers=answers.to(device, non_blocking=True),
        back=back.to(device, non_blocking=True),
    )


def _prefixes(
    lists: Sequence[PackedList], back: Tensor, base: int, device: torch.device | str
) -> Prefixes:
    """One batch; writes into `back` where its outputs are, which begin at `base`."""
    lengths = torch.tensor([entry.prefix_tokens for entry in lists])
    starts = torch.tensor([entry.start for entry in lists])
    width = int(lengths.max())
    steps = torch.arange(width) - (width - lengths)[:, None]  # negative at padding
    is_token = steps >= 0
    places = starts[:, None] + steps.clamp(min=0)
    back[places[is_token]] = base + torch.arange(places.numel()).view_as(places)[is_token]
    padded = None if bool(is_token.all()) else is_token.to(device, non_blocking=True)
    return Prefixes(places.to(device, non_blocking=True), padded)


def _answers(lists: Sequence[PackedList], back: Tensor, base: int) -> Tensor:
    """(S, A) places of all answers' tokens; writes into `back` as `_prefixes` does."""
    lengths = torch.tensor([count for entry in lists for count in entry.inside])
    inside = [torch.tensor(entry.inside, dtype=torch.long) for entry in lists]
    starts = torch.cat(
        [e.answers + counts.cumsum(0) - counts for e, counts in zip(lists, inside, strict=True)]
    )
    lengths, starts = lengths[lengths > 0], starts[lengths > 0]
    # Of a single token layers run their step for sampling, which has no gradient in some kernels.
    width = max(2, int(lengths.max()))
    steps = torch.arange(width).expand(len(lengths), -1)
    is_token = steps < lengths[:, None]
    places = starts[:, None] + torch.minimum(steps, lengths[:, None] - 1)
    back[places[is_token]] = base + torch.arange(places.numel()).view_as(places)[is_token]
    return places
