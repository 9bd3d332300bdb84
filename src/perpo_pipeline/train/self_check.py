"""Before training: does the shared prefix give the same results as separate rows on this model?

In bf16 two plain runs differ too, so the allowed difference is not zero but a multiple of that
between plain runs with different padding. The padding is on the left: on the right it would not
change the rounding of the tokens before it.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perpo_pipeline.errors import InputError, first_line
from perpo_pipeline.train.separate_rows import separate_lists, separate_logps
from perpo_pipeline.train.sharded_weights import is_sharded
from perpo_pipeline.train.shared_prefix import (
    CompletionList,
    RowLengths,
    pack_lists,
    packed_logps,
)
from perpo_pipeline.vlm.exactness import ALLOWED, Comparison, allowed_rounding
from perpo_pipeline.vlm.models import EncodedPrompt, Vlm, Way, base_model, type_arguments
from perpo_pipeline.vlm.refusals import REFUSALS, ran_out_of_memory, says_nothing
from perpo_pipeline.vlm.tensors import cast_tensors

# Padding before each row, which makes kernels split it at other places, and rows per forward.
PLAIN_RUNS = ((0, None), (67, 1), (131, None))
FEW = 2  # completions whose gradients are compared
# Relative differences of gradients that are always allowed.
GRADIENT_ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
CHUNK = 64  # tokens, of gated delta nets and Mamba 2 in transformers
GRADIENT_CAP = 0.3  # a larger difference is never allowed, however much plain runs differ


@torch.no_grad()
def compare_forwards(
    vlm: Vlm, entry: CompletionList, *, max_tokens: int, row_lengths: RowLengths = "any"
) -> Comparison:
    """Compute one list's log-probabilities both ways, at most `max_tokens` per forward.

    The shared prefix runs with the graphs of the reference, so nothing is compiled for this check
    alone: rows of bucketed lengths are filled up to a full forward's.
    """
    was_training = vlm.model.training
    vlm.model.eval()
    lists = _as_in_a_batch(vlm, entry, max_tokens)
    fill = max_tokens if row_lengths == "bucketed" else 0
    try:
        packed = pack_lists(vlm, lists, row_lengths=row_lengths, min_tokens=fill)
        shared = packed_logps(vlm.model, packed)
        # The plain rows have lengths of their own.
        with torch.compiler.set_stance("force_eager"):
            plain = [_plain_runs(vlm, one, max_tokens) for one in _of_unlike_prompts(lists)]
    finally:
        vlm.model.train(was_training)
    counts = packed.mask.sum(1).tolist()
    off = [
        _largest(shared[row, :count] - plain[min(row, len(plain) - 1)][0][:count])
        for row, count in enumerate(counts)
    ]
    magnitude = max(_largest(runs[0]) for runs in plain)
    return Comparison(
        shared=_largest(torch.tensor(off)),
        plain=max(_largest(a - b) for runs in plain for a in runs for b in runs),
        rounding=allowed_rounding(vlm.dtype, magnitude, max(map(len, entry.completions))),
        magnitude=magnitude,
    )


def check_shared_prefix(
    vlm: Vlm, entry: CompletionList, *, max_tokens: int, row_lengths: RowLengths = "any"
) -> Comparison:
    """Raise InputError with the figures if the shared prefix is not exact on this model."""
    found = compare_forwards(vlm, entry, max_tokens=max_tokens, row_lengths=row_lengths)
    if not found.is_exact:
        raise InputError(
            f"the shared-prefix forward is not exact on this model: {found}",
            fix="use train.forward: separate (slow and safe), and report the model",
        )
    return found


@dataclass(frozen=True)
class GradientComparison:
    """Relative differences of a few weights' gradients, one number for each weight.

    `shared`: between shared prefix and plain rows; `plain`: the largest between plain runs with
    different padding; `rounding`: a difference that is always allowed. Each weight is judged alone:
    one whose gradient is mostly rounding would else excuse the others.
    """

    shared: tuple[float, ...]
    plain: tuple[float, ...]
    rounding: float

    @property
    def allowed(self) -> tuple[float, ...]:
        """For each weight the largest `shared` that counts as exact, never above GRADIENT_CAP."""
        return tuple(min(GRADIENT_CAP, max(ALLOWED * plain, self.rounding)) for plain in self.plain)

    @property
    def is_exact(self) -> bool:
        """Whether the ways agree on every weight; NaN does not."""
        return all(off <= most for off, most in zip(self.shared, self.allowed, strict=True))

    def __str__(self) -> str:
        """The figures of the weight that is nearest to its limit, or the furthest beyond it."""
        pairs = zip(self.shared, self.allowed, strict=True)
        off, most = max(pairs, key=lambda pair: pair[0] / pair[1] if pair[0] >= 0 else math.inf)
        return f"gradients off by {off:.2g} (allowed {most:.2g})"


def compare_gradients(vlm: Vlm, entry: CompletionList) -> GradientComparison:
    """Compare both ways' gradients of a few weights of the first and the last decoder layer, on the
    first completions of a list; decoder layers keep nothing for the backward pass but their input.
    """
    few = CompletionList(entry.prompt, entry.completions[:FEW])
    weights = few_weights(vlm)
    was_training = vlm.model.training
    vlm.model.eval()
    try:
        with torch.compiler.set_stance("force_eager"), _layers_computed_again(vlm):
            shared = _gradients(weights, lambda: packed_logps(vlm.model, pack_lists(vlm, [few])))
            plain = [
                _gradients(
                    weights,
                    lambda padding=padding: separate_logps(  # type: ignore[misc]
                        vlm.model, separate_lists(vlm, [few], left_padding=padding)
                    ),
                )
                for padding in _paddings(vlm, few)
            ]
    finally:
        vlm.model.train(was_training)
    scales = [one.norm().clamp(min=torch.finfo(torch.float32).tiny) for one in plain[0]]
    among = [_off(a, b, scales) for a, b in itertools.combinations(plain, 2)]
    return GradientComparison(
        shared=_off(shared, plain[0], scales),
        plain=tuple(map(max, zip(*among, strict=True))),
        rounding=GRADIENT_ROUNDING[vlm.dtype],
    )


def _paddings(vlm: Vlm, entry: CompletionList) -> list[int]:
    """Tokens before the rows of each plain run.

    Layers with a state compute in chunks, and packed answers begin a chunk: so some of these rows
    begin one there, too, or half of one later.
    """
    paddings = [padding for padding, _ in PLAIN_RUNS]
    if vlm.layers.recurrent:
        until_chunk = -entry.prompt.num_tokens % CHUNK
        paddings += [until_chunk + CHUNK, until_chunk + CHUNK // 2]
    return paddings


def prove_training(vlm: Vlm, entry: CompletionList, *, max_tokens: int) -> Way:
    """Whether the shared prefix may train this model: values and gradients on one of its lists.

    Gradients are left out where ZeRO-3 shards the weights, which has no backward pass yet, and
    where memory runs out.
    """
    found = compare_forwards(vlm, entry, max_tokens=max_tokens)
    if not found.is_exact:
        return Way(False, f"it is not exact on this model: {found}")
    if is_sharded(vlm.model):
        return Way(True, f"exact on one list; {found}")
    try:
        gradients = compare_gradients(vlm, entry)
    except (*REFUSALS, MemoryError) as error:
        if says_nothing(error):
            raise
        if not ran_out_of_memory(error):
            why = f"{type(error).__name__}: {first_line(error)}"
            return Way(False, f"its gradients cannot be computed ({why})")
        why = f"gradients not compared: memory ran out ({first_line(error)})"
        return Way(True, f"exact on one list; {why}; {found}")
    if not gradients.is_exact:
        return Way(False, f"it is not exact on this model: {gradients}; {found}")
    return Way(True, f"exact on one list; {gradients}; {found}")


@contextmanager
def _layers_computed_again(vlm: Vlm) -> Iterator[None]:
    """Run each decoder layer again in the backward pass instead of keeping what is inside it.

    transformers' own switch works in training mode alone, where a model may draw random numbers.
    """
    again: Any = functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    with ExitStack() as undo:
        for layer in base_model(vlm.model).get_decoder().layers:
            before = vars(layer).get("forward")
            undo.callback(_set_forward, layer, before)
            layer.forward = functools.partial(again, layer.forward)
        yield


def _set_forward(layer: Any, forward: Any) -> None:
    """Give a module this forward of its own, or that of its class where it had none."""
    if forward is None:
        del layer.forward
    else:
        layer.forward = forward


def few_weights(vlm: Vlm) -> list[nn.Parameter]:
    """Norms, and a matrix that is not quantised, of the first and the last decoder layer."""
    layers: Any = base_model(vlm.model).get_decoder().layers
    chosen = []
    for layer in (layers[0], layers[-1]):
        parts = [p for p in layer.parameters() if p.is_floating_point()]
        chosen += [next((p for p in parts if p.ndim == n), None) for n in (1, 2)]
    return list({id(p): p for p in chosen if p is not None}.values())


def _gradients(weights: Sequence[nn.Parameter], logps_of: Callable[[], Tensor]) -> list[Tensor]:
    before = [weight.requires_grad for weight in weights]
    try:
        with torch.enable_grad():
            for weight in weights:
                weight.requires_grad_(True)
            logps = logps_of()
            # Unlike factors: a sum would hide gradients that cancel out.
            factors = torch.linspace(1, 2, logps.numel(), device=logps.device).view_as(logps)
            found = torch.autograd.grad((logps * factors).sum(), weights, allow_unused=True)
    finally:
        for weight, was in zip(weights, before, strict=True):
            weight.requires_grad_(was)
    return [
        torch.zeros_like(weight) if one is None else one.float()
        for weight, one in zip(weights, found, strict=True)
    ]


def _off(
    some: Sequence[Tensor], others: Sequence[Tensor], scales: Sequence[Tensor]
) -> tuple[float, ...]:
    """For each weight the norm of the difference, relative to `scales`."""
    return tuple(
        float((one - other).norm() / scale)
        for one, other, scale in zip(some, others, scales, strict=True)
    )


@torch.no_grad()
def check_own_head(vlm: Vlm, entry: CompletionList) -> None:
    """Raise InputError if the model's logits differ from those that this package computes.

    Some untested families scale or cap what their head gives in a way that vlm/heads.py lacks.
    """
    one = CompletionList(entry.prompt, [max(entry.completions, key=len)])
    batch = separate_lists(vlm, [one]).to(vlm.device)
    with torch.compiler.set_stance("force_eager"):  # rows of this length come only once
        logits = base_model(vlm.model)(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            use_cache=False,
            **type_arguments(base_model(vlm.model), batch.token_types),
            **cast_tensors(batch.tensors, vlm.dtype),
        ).logits
        ours = separate_logps(vlm.model, batch)[0, 0]
    # Of the answer alone: the vocabulary may end before the placeholders of a prompt's images.
    answer = batch.is_answer[0, 1:]
    logps = logits[0, :-1][answer].float().log_softmax(-1)
    logps = logps.gather(-1, batch.input_ids[0, 1:][answer][:, None]).sum()
    if not float((ours - logps).abs()) <= max(1e-3, 16 * torch.finfo(vlm.dtype).eps):
        raise InputError(
            f"the model's own log-probability of a completion is {float(logps):.4g} nats, here it "
            f"comes out as {float(ours):.4g}: a '{vlm.family.name}' changes its logits after the "
            "head, which is not supported",
        )


def _as_in_a_batch(vlm: Vlm, entry: CompletionList, max_tokens: int) -> list[CompletionList]:
    """The list and, as far as they fit into `max_tokens` with it, its first completions again.

    So it stands next to another list: in a row of its own, or after it in one row. Where layers
    have a state, a few completions are behind another prompt, so that its state is another one.
    """
    left = max_tokens - entry.num_packed_tokens - entry.prompt.num_tokens
    again = []
    for completion in entry.completions:
        left -= len(completion) - 1
        if left < 0:
            break
        again.append(completion)
    second = CompletionList(entry.prompt, again)
    if vlm.layers.recurrent:
        second = CompletionList(_turned_round(vlm, entry.prompt), again[:FEW])
    return [entry, second] if again else [entry]


def _turned_round(vlm: Vlm, prompt: EncodedPrompt) -> EncodedPrompt:
    """The same prompt with the text behind its last image the other way round.

    Its tokens have the same types and positions, but leave another state.
    """
    images = torch.isin(prompt.input_ids, torch.tensor(vlm.image_token_ids)).nonzero()
    begin = int(images.max()) + 1 if len(images) else 0
    ids = prompt.input_ids
    return replace(prompt, input_ids=torch.cat([ids[:begin], ids[begin:].flip(0)]))


def _of_unlike_prompts(lists: Sequence[CompletionList]) -> list[CompletionList]:
    """The first list, which also has the completions of a second one behind the same prompt."""
    first, *others = lists
    return [first, *(one for one in others if one.prompt is not first.prompt)]


def _plain_runs(vlm: Vlm, entry: CompletionList, max_tokens: int) -> list[Tensor]:
    """(N,) log-probabilities of the list's completions from each of PLAIN_RUNS."""
    return [
        torch.cat(list(_plain(vlm, entry, padding, max_tokens if rows is None else 1)))
        for padding, rows in PLAIN_RUNS
    ]


def _plain(vlm: Vlm, entry: CompletionList, padding: int, max_tokens: int) -> Iterator[Tensor]:
    longest = entry.prompt.num_tokens + max(map(len, entry.completions)) + padding
    rows = max(1, max_tokens // longest)
    for start in range(0, len(entry.completions), rows):
        some = CompletionList(entry.prompt, entry.completions[start : start + rows])
        batch = separate_lists(vlm, [some], left_padding=padding)
        yield separate_logps(vlm.model, batch)[0]


def _largest(values: Tensor) -> float:
    return float(values.abs().max())
