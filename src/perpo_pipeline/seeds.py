"""Independent seeds, all derived from the run's one seed."""

import hashlib

SEED_BITS = 63


def derive_seed(run_seed: int, *names: str) -> int:
    """A 63-bit seed that is a hash of the run's seed and `names`, e.g. the prompt's id.

    One seed shared by all prompts would correlate their samples.
    """
    key = "\x1f".join((str(run_seed), *names))
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)
