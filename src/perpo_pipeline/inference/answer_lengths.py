"""Whether a server that returns no token ids kept to `max_new_tokens`, by what it counts itself.

Completions are tokenised from their text there, which need not give as many tokens as were drawn:
a text has several spellings in tokens, and control tokens are not in it. So of one completion both
numbers, ours and `usage.completion_tokens`, must speak clearly against the limit. Thoughts that the
server counts are in its number, too.
"""

from collections.abc import Sequence

from perpo_pipeline.vlm.completion import Completion

CLEARLY = 0.9  # of the limit: another tokenizer counts a few tokens more or less


def length_fault(drawn: Sequence[Completion], counted: int | None, limit: int) -> str | None:
    """Why the completions of one reply cannot have been drawn up to `limit` tokens, or None.

    `counted` is the number of tokens of all of them together, as the server says; None if it does
    not. Of several completions one that was cut must have fewer than half of the tokens: its own
    number is then an estimate. Where nobody counted, or only one of several, it must have fewer
    than a quarter: line breaks, for one, are spelled four in a token.
    """
    cut = [len(one.token_ids) for one in drawn if one.finish_reason == "length"]
    if len(drawn) == 1 and counted is not None:
        own = len(drawn[0].token_ids)
        if cut and max(counted, own) < CLEARLY * limit:
            return ended_early(counted, limit)
        if min(counted, own) > limit:
            return f"the server sent {counted} tokens, and max_new_tokens is {limit}: it ignores it"
        return None
    stopped = sum(len(one.token_ids) - 1 for one in drawn if one.finish_reason == "stop")
    if counted is not None and counted - stopped >= limit * len(cut):
        return None
    few = 2 if counted is not None and counted > limit else 4
    if cut and few * min(cut) < limit:
        return ended_early(min(cut), limit)
    return None


def ended_early(tokens: int, limit: int) -> str:
    """The reason of an answer that a server cut after `tokens` tokens, before the run's limit."""
    return (
        f"the server ended an answer after {tokens} tokens, and max_new_tokens is {limit}: start "
        "it without a limit of its own (vLLM with --generation-config vllm) and with a context "
        "(--max-model-len) that holds prompt and answer"
    )
