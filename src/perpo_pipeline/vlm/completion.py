"""One answer of a model, as every backend and the evaluation have it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Completion:
    """One answer. `token_ids` ends with the end token where the model stopped by itself.

    `finish_reason` is `stop` or `length`; `sampler_logprob` the sum over `token_ids` in nats at
    T = 1 under the model's full vocabulary (a diagnosis, never the training reference), None where
    a server does not tell.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    sampler_logprob: float | None
