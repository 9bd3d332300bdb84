"""Which completions change with the batch size, because float rounding does."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from sample_ways import TEMPERATURE, testbed

from perpo_pipeline.vlm.completion import Completion
from perpo_pipeline.vlm.decoding import sample_lists
from perpo_pipeline.vlm.models import EncodedPrompt, Vlm

NUM_SAMPLES, MAX_NEW_TOKENS = 20, 32
BATCH_SIZES = (1, 4, 16, 64)


def compare_batch_sizes(
    num_prompts: int, dtypes: Sequence[torch.dtype], device: torch.device
) -> list[dict[str, Any]]:
    """Compare every pair of batch sizes on the shipped model, whose end token ends answers."""
    rows = []
    for dtype in dtypes:
        vlm, prompts = testbed(num_prompts, dtype, device)
        drawn = {size: draw(vlm, prompts, size) for size in BATCH_SIZES}
        for pair in combinations(BATCH_SIZES, 2):
            row = {"dtype": str(dtype).removeprefix("torch."), "batch_sizes": list(pair)}
            rows.append(row | difference(*(drawn[size] for size in pair)))
    return rows


def draw(vlm: Vlm, prompts: Sequence[EncodedPrompt], batch_size: int) -> list[Completion]:
    found = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        lists = sample_lists(
            vlm,
            batch,
            num_samples=NUM_SAMPLES,
            temperature=TEMPERATURE,
            max_new_tokens=MAX_NEW_TOKENS,
            seeds=range(start, start + len(batch)),
        )
        found += [one for drawn in lists for one in drawn]
    return found


def difference(one: Sequence[Completion], other: Sequence[Completion]) -> dict[str, Any]:
    """How two runs differ; `max_abs_dlogprob_nats` covers the completions with equal tokens."""
    pairs = list(zip(one, other, strict=True))
    equal = [(a, b) for a, b in pairs if a.token_ids == b.token_ids]
    off = [abs((a.sampler_logprob or 0.0) - (b.sampler_logprob or 0.0)) for a, b in equal]
    return {
        "completions": len(pairs),
        "tokens": sum(len(a.token_ids) for a in one),
        "differ": len(pairs) - len(equal),
        "share": 1 - len(equal) / len(pairs),
        "max_abs_dlogprob_nats": max(off, default=0.0),
    }
