"""Bodies that a server may send in answer to a request for completions: right, near it or not."""

import json

from hypothesis import strategies as st

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
PARTS = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "thinking"]) | VALUES}, optional={"text": VALUES}
    ),
    max_size=3,
)
MESSAGES = st.fixed_dictionaries(
    {"content": st.text(max_size=8) | st.none() | PARTS | VALUES},
    optional={"role": VALUES, "reasoning_content": VALUES, "reasoning": VALUES},
)
CHOICES = st.lists(
    st.fixed_dictionaries(
        {
            "message": MESSAGES | VALUES,
            "finish_reason": st.sampled_from(["stop", "length"]) | VALUES,
        },
        optional={
            "index": st.integers(0, 2) | VALUES,
            "token_ids": st.lists(st.integers(0, 300), max_size=4) | VALUES,
            "logprobs": VALUES,
        },
    ),
    max_size=2,
)
COUNTED = st.fixed_dictionaries({"reasoning_tokens": st.integers(0, 3) | VALUES})
REPLIES = st.fixed_dictionaries(
    {"choices": CHOICES | VALUES},
    optional={
        "usage": VALUES | st.fixed_dictionaries({"completion_tokens_details": COUNTED}),
        "prompt_token_ids": VALUES,
    },
)
BODIES = st.binary(max_size=40).map(lambda data: data.decode("latin-1")) | st.one_of(
    REPLIES, REPLIES, VALUES
).map(json.dumps)
