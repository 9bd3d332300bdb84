"""What a server answers to a request for completions, and what many such answers show."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from perpo_pipeline.inference.backend import Failure, SampledList
from perpo_pipeline.vlm.openai_server import Message, Wire


class _Token(Wire):
    logprob: float | None = None


class _Logprobs(Wire):
    content: list[_Token] | None = None


class Choice(Wire):
    """One completion; `token_ids` are there if the server returns them, as vLLM does."""

    message: Message
    index: int = 0
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[Annotated[int, Field(ge=0)]] | None = None


class Reply(Wire):
    """The choices of one request, and what the server says it read and counted."""

    choices: list[Choice]
    prompt_token_ids: list[int] | None = None
    usage: Any = None

    @property
    def counted_tokens(self) -> int | None:
        """How many tokens the server counts in all choices; None if it does not say."""
        return self._counted("completion_tokens")

    @property
    def thought_tokens(self) -> int:
        """How many tokens of thoughts the server counts in all choices; 0 if it does not say."""
        return self._counted("completion_tokens_details", "reasoning_tokens") or 0

    def _counted(self, *names: str) -> int | None:
        found = self.usage
        for name in names:
            found = found.get(name) if isinstance(found, dict) else None
        return found if isinstance(found, int) else None


@dataclass
class EqualLists:
    """Counts the prompts whose completions are all equal, as from a cache."""

    lists: int = 0
    equal: int = 0
    noted: int = 0

    def add(self, found: Sequence[SampledList | Failure], several: int = 2) -> str | None:
        """A warning, if `several` are, and most; again only when twice as many are there."""
        lists = [f.completions for f in found if isinstance(f, SampledList) and f.completions[1:]]
        self.lists += len(lists)
        self.equal += sum(len({c.token_ids for c in each}) == 1 for each in lists)
        if self.equal < several or 2 * self.equal < self.lists or self.lists < 2 * self.noted:
            return None
        self.noted = self.lists
        return (
            f"all completions are equal for {self.equal} of {self.lists} prompts. The server may "
            "answer from a cache or ignore `seed` and the temperature, or the model is this "
            "certain; nothing can be learnt from such lists"
        )
