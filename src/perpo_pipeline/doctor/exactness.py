"""Checks of the training forward: shared prefix against separate rows, on a small random model.

Both give the same log-probabilities and gradients up to rounding. How large rounding is on this
card is measured: separate rows padded on the left differ from separate rows by nothing else.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from perpo_pipeline.config.train import LoraSettings, TrainSettings
from perpo_pipeline.doctor.finding import Finding, verdict
from perpo_pipeline.prepare.testbed import render_prompts
from perpo_pipeline.testbed import testbed_settings
from perpo_pipeline.train.compilation import compile_layers
from perpo_pipeline.train.engine import ListPolicy, ready_model
from perpo_pipeline.train.scope import make_trainable
from perpo_pipeline.train.separate_rows import SeparateBatch, separate_lists
from perpo_pipeline.train.shared_prefix import CompletionList, PackedBatch, pack_lists
from perpo_pipeline.vlm.exactness import ALLOWED, Comparison, allowed_rounding
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.inputs import encode_row
from perpo_pipeline.vlm.loading import compute_whole_float32, load_without_weights
from perpo_pipeline.vlm.models import Vlm, base_model

LORA_RANK = 16
ANSWER_SPREAD, TEXT_SPREAD = 5, 9  # tokens
FIRST_WORD = 10  # token ids below are special
LEFT_PADDING = 67  # tokens: it makes kernels split the rows at other places
# Relative differences of gradients that are always allowed.
GRADIENT_ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
SLOW = "use train.forward: separate (slow and safe), and report the card and the versions"
EAGER = "set train.compile: false, and report the card and the versions"
BUCKETED = "set train.row_lengths: bucketed, and report the card and the versions"
Rows = Callable[[], PackedBatch | SeparateBatch]


@dataclass(frozen=True)
class Size:
    """Sizes of the text model (two layers) and of the lists.

    Each head has `hidden / heads` numbers; `text_tokens` random ones stand behind each rendered
    prompt; a list has `answers` of about `answer_tokens`.
    """

    hidden: int
    intermediate: int
    heads: int
    text_tokens: int = 500
    answers: int = 20
    answer_tokens: int = 26
    lists: int = 2


REHEARSAL = Size(64, 128, 2, text_tokens=100, answers=4, answer_tokens=9)
SMALL, OF_7B = Size(256, 512, 4), Size(4096, 11_008, 32)


@dataclass(frozen=True)
class Outcome:
    """`logps` (B, N) in nats, `gradient` of all adapter weights in a row, seconds of two steps."""

    logps: Tensor
    gradient: Tensor
    first_s: float
    second_s: float


def flex_float32(device: str) -> Finding:
    """Attention with our block masks against separate rows, in fp32."""
    return compare(device, torch.float32)


def flex_bfloat16(device: str) -> Finding:
    """The same in bf16, on CUDA at the width of a 7B model."""
    return compare(device, torch.bfloat16)


def checkpointing(device: str) -> Finding:
    """Compiled layers that compute their activations a second time, in bf16."""
    return compare(device, torch.bfloat16, compiled=True, recomputed=True)


def compiled_layers(device: str) -> Finding:
    """Layers compiled as in training; rows of another length must not compile them again."""
    from torch._dynamo.utils import counters

    counters.clear()
    vlm, lists, found = measure(device, torch.bfloat16, compiled=True)
    exact = judge(*found, vlm.dtype, longest_answer(lists))
    graphs = counters["stats"]["unique_graphs"]
    fewer = [
        replace(one, completions=one.completions[: len(one.completions) // 2]) for one in lists
    ]
    other = outcome(vlm, lambda: pack_lists(vlm, fewer))
    added = counters["stats"]["unique_graphs"] - graphs
    if exact.state == "failed":
        return replace(exact, fix=EAGER)
    return verdict(
        added == 0,
        f"{exact.text}; {graphs} graphs in {found[0].first_s:.0f} s, {added} more for rows of "
        "another length",
        BUCKETED,
        **exact.figures,
        graphs=graphs,
        graphs_for_another_length=added,
        first_step_of_another_length_s=other.first_s,
    )


def compare(
    device: str, dtype: torch.dtype, *, compiled: bool = False, recomputed: bool = False
) -> Finding:
    """Shared prefix against separate rows."""
    _, lists, found = measure(device, dtype, compiled=compiled, recomputed=recomputed)
    exact = judge(*found, dtype, longest_answer(lists))
    return replace(exact, fix=EAGER) if exact.fix and compiled else exact


def measure(
    device: str, dtype: torch.dtype, *, compiled: bool, recomputed: bool = False
) -> tuple[Vlm, list[CompletionList], tuple[Outcome, Outcome, Outcome]]:
    """A model with its lists, and the outcomes of shared prefix, separate and padded rows."""
    size = OF_7B if dtype == torch.bfloat16 else SMALL
    if device == "cpu":
        size = REHEARSAL
    vlm = random_model(device, dtype, size)
    settings = TrainSettings(
        lora=LoraSettings(rank=LORA_RANK, alpha=2 * LORA_RANK),
        compile=compiled and device == "cuda",
    )
    vlm.model = make_trainable(vlm, settings).train()
    for name, parameter in vlm.model.named_parameters():
        if "lora_B" in name:  # zero at the start, where A has no gradient
            nn.init.normal_(parameter, std=0.01)
    lists = random_lists(vlm, size)
    plain = outcome(vlm, lambda: separate_lists(vlm, lists))
    padded = outcome(vlm, lambda: separate_lists(vlm, lists, left_padding=LEFT_PADDING))
    ready_model(vlm, "shared-prefix", settings)
    if compiled and device == "cpu":  # a rehearsal: Inductor would take minutes
        compile_layers(base_model(vlm.model), settings.row_lengths, backend="eager")
    if recomputed:
        model: Any = vlm.model
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return vlm, lists, (outcome(vlm, lambda: pack_lists(vlm, lists)), plain, padded)


def random_model(device: str, dtype: torch.dtype, size: Size) -> Vlm:
    """The embedded model's architecture with random weights and another size."""
    from transformers import AutoModelForImageTextToText

    vlm = load_without_weights(resolve_model("testbed"))
    shape: Any = vlm.model
    config = shape.config
    text = config.get_text_config()
    text.hidden_size, text.intermediate_size = size.hidden, size.intermediate
    text.num_attention_heads = text.num_key_value_heads = size.heads
    text.head_dim, text.num_hidden_layers = size.hidden // size.heads, 2
    text.max_position_embeddings = 4096
    compute_whole_float32(dtype, torch.device(device))
    torch.manual_seed(0)
    build: Any = AutoModelForImageTextToText
    with torch.device(device):
        model = build.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return replace(vlm, model=model.requires_grad_(False), device=torch.device(device), dtype=dtype)


def random_lists(vlm: Vlm, size: Size) -> list[CompletionList]:
    """Rendered prompts with random text behind them, and random answers of unlike lengths."""
    generator = torch.Generator().manual_seed(0)
    shape: Any = vlm.model
    vocabulary = shape.config.get_text_config().vocab_size

    def tokens(mean: int, spread: int) -> Tensor:
        length = mean + int(torch.randint(-spread, spread + 1, (), generator=generator))
        return torch.randint(FIRST_WORD, vocabulary, (length,), generator=generator)

    lists = []
    for row in render_prompts(testbed_settings(0, "doctor", size.lists), "doctor"):
        prompt = encode_row(vlm, row, "processor")
        ids = torch.cat([prompt.input_ids, tokens(size.text_tokens, TEXT_SPREAD)])
        positions = torch.arange(len(ids))[None]
        longer = replace(prompt, input_ids=ids, positions=positions, next_position=len(ids))
        answers = [tokens(size.answer_tokens, ANSWER_SPREAD).tolist() for _ in range(size.answers)]
        lists.append(CompletionList(longer, answers))
    return lists


def outcome(vlm: Vlm, rows: Rows) -> Outcome:
    """Log-probabilities and gradients of the adapter; the first of two steps may compile."""
    policy, batch = ListPolicy(vlm.model), rows().to(vlm.device)
    trained = [p for p in policy.parameters() if p.requires_grad]
    seconds = []
    for _ in range(2):
        policy.zero_grad()
        start = time.perf_counter()
        logps = policy(batch)
        weights = torch.linspace(-1, 1, logps.numel(), device=logps.device).view_as(logps)
        (logps * weights).sum().backward()
        gradient = torch.cat([p.grad.flatten().float() for p in trained if p.grad is not None])
        gradient = gradient.cpu()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return Outcome(logps.detach().cpu(), gradient, *seconds)


def judge(
    shared: Outcome, plain: Outcome, padded: Outcome, dtype: torch.dtype, longest: int
) -> Finding:
    """Whether shared prefix and plain rows differ by no more than plain rows among themselves.

    `longest` is the number of tokens of the longest answer.
    """
    magnitude = largest(plain.logps)
    logps = Comparison(
        largest(shared.logps - plain.logps),
        largest(padded.logps - plain.logps),
        allowed_rounding(dtype, magnitude, longest),
        magnitude,
    )
    off, plainly = (relative(one.gradient, plain.gradient) for one in (shared, padded))
    allowed = max(ALLOWED * plainly, GRADIENT_ROUNDING[dtype])
    return verdict(
        logps.is_exact and off <= allowed,  # false for NaN
        f"log-probabilities differ by {logps.shared:.2g} nats (allowed {logps.allowed:.2g}, of "
        f"{magnitude:.0f}), gradients by {off:.2g} (allowed {allowed:.2g})",
        SLOW,
        dlogp_nats=logps.shared,
        dlogp_of_plain_rows_nats=logps.plain,
        dlogp_allowed_nats=logps.allowed,
        gradient_off=off,
        gradient_of_plain_rows_off=plainly,
        gradient_allowed=allowed,
        first_step_s=shared.first_s,
        second_step_s=shared.second_s,
    )


def longest_answer(lists: Sequence[CompletionList]) -> int:
    """Tokens of the longest answer."""
    return max(len(answer) for entry in lists for answer in entry.completions)


def largest(values: Tensor) -> float:
    """The largest absolute value."""
    return float(values.abs().max())


def relative(one: Tensor, other: Tensor) -> float:
    """The norm of the difference, relative to the other's norm."""
    return float((one - other).norm() / other.norm())
