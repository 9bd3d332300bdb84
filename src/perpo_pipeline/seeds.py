"""Independent seeds, all derived from the run's one seed, and choices among equals."""

import hashlib
from collections.abc import Iterable

SEED_BITS = 63


def derive_seed(run_seed: int, *names: str) -> int:
    """A 63-bit seed that is a hash of the run's seed and `names`, e.g. the prompt's id.

    One seed shared by all prompts would correlate their samples.
    """
    key = "\x1f".join((str(run_seed), *names))
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)


def tie_break(token_ids: Iterable[object]) -> str:
    """What decides between completions of equal reward: the smallest hash, whatever their order."""
    return tie_break_of_text(",".join(map(str, token_ids)))


def tie_break_of_text(token_ids: str) -> str:
    """`tie_break` for token ids that are written with commas between them."""
    return hashlib.sha256(token_ids.encode()).hexdigest()
