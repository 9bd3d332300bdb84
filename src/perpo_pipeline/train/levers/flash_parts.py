"""The lever `flash-parts`: attention of packed lists as two flash calls, joined by log-sum-exp.

A packed answer token sees its prefix and its own answer. One call gives every prefix and every
answer causal attention to itself; the other gives all answers of a list full attention to its
prefix. With the log-sum-exp of both, their outputs become one softmax over all keys:

    lse = logaddexp(lse_1, lse_2),  out = exp(lse_1 - lse) out_1 + exp(lse_2 - lse) out_2

Flash's backward pass computes the probabilities again as exp(scores - lse), and needs beside them
only the row sums of grad * out. Given the *joined* out and lse it therefore returns exactly the
part of the gradients that belongs to its keys, so two backward calls are added up, and no gradient
of lse is needed. (Dao et al., FlashAttention-2, arXiv:2307.08691, algorithm 2.)
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from perpo_pipeline.train.layout import PackedList
from perpo_pipeline.vlm.attention import PARTS, shared_prefix_attention

PADDING_TOKENS = 128  # padding attends to itself, in pieces of at most this many tokens

# The tensors that `list_parts` gives: boundaries of all prefixes, answers and padding (S + 1,);
# places of the answers' tokens (A,), and where each list's begin (L + 1,); places of the prefixes'
# tokens (P,), and where each begins (L + 1,); the longest of each kind, three scalars on the CPU (a
# compiler takes integers, and sizes that happen to be equal, for constants).
Parts = tuple[Tensor, ...]


def list_parts(lists: Sequence[PackedList], num_places: int, device: torch.device | str) -> Parts:
    """The parts of packed rows with `num_places` = R * T places in all; T may be padded."""
    segments = list(_segments(lists, num_places))
    with_answers = [entry for entry in lists if sum(entry.inside)]
    answers = [range(e.answers, e.answers + sum(e.inside)) for e in with_answers]
    prefixes = [range(e.start, e.answers) for e in with_answers]
    longest = [max(map(len, some), default=0) for some in (answers, prefixes)]

    def boundaries(lengths: Sequence[int]) -> Tensor:
        ends = torch.tensor([0, *lengths]).cumsum(0)
        return ends.to(torch.int32).to(device, non_blocking=True)

    def places(ranges: Sequence[range]) -> Tensor:
        found = torch.tensor([place for some in ranges for place in some], dtype=torch.long)
        return found.to(device, non_blocking=True)

    return (
        boundaries(segments),
        places(answers),
        boundaries([len(some) for some in answers]),
        places(prefixes),
        boundaries([len(some) for some in prefixes]),
        *map(torch.tensor, (max(segments), *longest)),
    )


def _segments(lists: Sequence[PackedList], num_places: int) -> Iterator[int]:
    """Lengths of what attends causally to itself, from the first place to the last."""
    place = 0
    for entry in sorted(lists, key=lambda one: one.start):
        yield from _pieces(entry.start - place)
        yield entry.prefix_tokens
        yield from (count for count in entry.inside if count)
        place = entry.answers + sum(entry.inside)
    yield from _pieces(num_places - place)


def _pieces(count: int) -> Iterator[int]:
    for start in range(0, count, PADDING_TOKENS):
        yield min(PADDING_TOKENS, count - start)


def use_flash_parts(model: Any) -> None:
    """Make the text model of a transformers VLM take `packed_parts`; else it is plain SDPA."""
    AttentionInterface.register(PARTS, flash_parts_attention)
    AttentionMaskInterface.register(PARTS, sdpa_mask)
    model.set_attn_implementation({"text_config": PARTS})


def flash_parts_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_parts: Parts | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention over packed rows, (R, H, T, D) -> (R, T, H, D)."""
    if packed_parts is None:
        return shared_prefix_attention(module, query, key, value, attention_mask, **kwargs)
    q, k, v = (t.transpose(1, 2).flatten(0, 1).contiguous() for t in (query, key, value))
    out, _ = attention_in_parts(q, k, v, *packed_parts, kwargs["scaling"])
    return out.unflatten(0, (query.shape[0], query.shape[2])), None


@torch.library.custom_op("perpo::attention_in_parts", mutates_args=())
def attention_in_parts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Tensor,
    answers: Tensor,
    answer_ends: Tensor,
    prefixes: Tensor,
    prefix_ends: Tensor,
    longest_segment: Tensor,
    longest_answers: Tensor,
    longest_prefix: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attention of all places, and its log-sum-exp.

    `query` (T, H, D), `key` and `value` (T, G, D) with H a multiple of G -> (T, H, D) and (H, T)
    in fp32; the rest as in `list_parts`.
    """
    sizes = (int(longest_segment),) * 2
    prefix_sizes = (int(longest_answers), int(longest_prefix))
    out, lse = _flash(query, key, value, segments, segments, sizes, True, scale)
    if len(answers):
        from_prefix, lse_of_prefix = _flash(
            query[answers],
            key[prefixes],
            value[prefixes],
            answer_ends,
            prefix_ends,
            prefix_sizes,
            False,
            scale,
        )
        own = lse[:, answers]
        joined = torch.logaddexp(own, lse_of_prefix)
        shares = ((part - joined).exp().t()[..., None] for part in (own, lse_of_prefix))
        mixed = out[answers] * next(shares) + from_prefix * next(shares)
        out[answers] = mixed.to(out.dtype)
        lse[:, answers] = joined
    return out, lse


@attention_in_parts.register_fake
def _(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    tokens, heads, _size = query.shape
    return torch.empty_like(query), query.new_empty(heads, tokens, dtype=torch.float32)


@torch.library.custom_op("perpo::attention_in_parts_backward", mutates_args=())
def attention_in_parts_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    segments: Tensor,
    answers: Tensor,
    answer_ends: Tensor,
    prefixes: Tensor,
    prefix_ends: Tensor,
    longest_segment: Tensor,
    longest_answers: Tensor,
    longest_prefix: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from the joined `out` and `lse`."""
    sizes = (int(longest_segment),) * 2
    prefix_sizes = (int(longest_answers), int(longest_prefix))
    grads = _flash_backward(
        (grad, query, key, value, out, lse), segments, segments, sizes, True, scale
    )
    if len(answers):
        of_query, of_key, of_value = _flash_backward(
            (
                grad[answers],
                query[answers],
                key[prefixes],
                value[prefixes],
                out[answers],
                lse[:, answers].contiguous(),
            ),
            answer_ends,
            prefix_ends,
            prefix_sizes,
            False,
            scale,
        )
        grads[0].index_add_(0, answers, of_query)
        grads[1].index_add_(0, prefixes, of_key)
        grads[2].index_add_(0, prefixes, of_value)
    return grads


@attention_in_parts_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors[:3], *output, *tensors[3:])


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grads = attention_in_parts_backward(grad.contiguous(), *ctx.saved_tensors, ctx.scale)
    return (*grads, *[None] * 9)


attention_in_parts.register_autograd(_gradients, setup_context=_save)


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    longest: tuple[int, int],
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Flash attention of segments: (T, H, D) and its log-sum-exp (H, T)."""
    if query.is_cuda:
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            query, key, value, query_ends, key_ends, *longest, 0.0, causal, False, scale=scale
        )
        return out, lse
    out, lse = torch.empty_like(query), query.new_empty(query.shape[1], len(query)).float()
    for some, keys in _each(query_ends, key_ends):
        q, k, v = _as_batch(query[some], key[keys], value[keys])
        found, found_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, scale=scale
        )
        out[some], lse[:, some] = found[0].transpose(0, 1), found_lse[0]
    return out, lse


def _flash_backward(
    tensors: Sequence[Tensor],
    query_ends: Tensor,
    key_ends: Tensor,
    longest: tuple[int, int],
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key, value; `tensors` are grad, query, key, value, out and lse."""
    grad, query, key, value, out, lse = tensors
    if query.is_cuda:
        # Dropout's random state, without dropout.
        seed = torch.zeros(2, dtype=torch.uint64, device=query.device)
        offset = torch.zeros(0, device=query.device)
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
            *tensors, query_ends, key_ends, *longest, 0.0, causal, seed, offset, scale=scale
        )
        return found
    grads = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    for some, keys in _each(query_ends, key_ends):
        q, k, v = _as_batch(query[some], key[keys], value[keys])
        g, o, _ = _as_batch(grad[some], out[some], out[some])
        of_query, *of_keys = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            g, q, k, v, o, lse[None, :, some].contiguous(), 0.0, causal, scale=scale
        )
        grads[0][some] = of_query[0].transpose(0, 1)
        for sum_of, of_heads in zip(grads[1:], of_keys, strict=True):
            groups = of_heads[0].transpose(0, 1).unflatten(1, (key.shape[1], -1))
            sum_of[keys] = groups.sum(2)
    return grads


def _each(query_ends: Tensor, key_ends: Tensor) -> Iterator[tuple[slice, slice]]:
    """The places of each segment's queries and keys (on the CPU, where flash has no such call)."""
    ends = zip(query_ends.tolist(), key_ends.tolist(), strict=True)
    first, start = next(ends)
    for end, stop in ends:
        yield slice(first, end), slice(start, stop)
        first, start = end, stop


def _as_batch(query: Tensor, key: Tensor, value: Tensor) -> Iterator[Tensor]:
    """(t, H, D) -> (1, H, t, D); heads of keys and values are repeated for their queries."""
    for tensor in (query, key, value):
        repeated = tensor.repeat_interleave(query.shape[1] // tensor.shape[1], dim=1)
        yield repeated.transpose(0, 1)[None]
