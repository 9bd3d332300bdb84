"""One answer of a model; every backend and the evaluation use this record."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Completion:
    """One answer. `token_ids` ends with the end token if the model stopped by itself.

    `finish_reason` is `stop` or `length`. `sampler_logprob` is the sum over `token_ids`, in nats at
    T = 1 under the model's full vocabulary; None if a server does not return it. It is a
    diagnostic, never the training reference.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    sampler_logprob: float | None
