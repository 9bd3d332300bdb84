"""The check before a run passes healthy models and refuses each way a shared prefix goes wrong."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_families import save_tiny_family
from tiny_models import noise_image
from tiny_recurrent import save_tiny_qwen3_5
from tiny_untried import save_untried
from torch._dynamo.testing import CompileCounter
from transformers import AttentionInterface

from perpo_pipeline.config.train import TrainSettings
from perpo_pipeline.errors import InputError
from perpo_pipeline.train import self_check
from perpo_pipeline.train.compilation import compile_layers
from perpo_pipeline.train.engine import ready_model
from perpo_pipeline.train.self_check import (
    GradientComparison,
    check_own_head,
    check_shared_prefix,
    compare_gradients,
    few_weights,
    prove_training,
)
from perpo_pipeline.train.separate_rows import separate_lists
from perpo_pipeline.train.shared_prefix import (
    CompletionList,
    PackedBatch,
    pack_lists,
    packed_logps,
)
from perpo_pipeline.vlm.attention import SPLIT, Spans, shared_prefix_attention
from perpo_pipeline.vlm.exactness import Comparison
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.layers import Reach
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.models import Vlm, base_model
from perpo_pipeline.vlm.prompts import encode_prompt
from perpo_pipeline.vlm.recurrent import LayerStates, use_recurrent_steps

FAMILIES = ["llava", "qwen2_5_vl"]
DTYPES = ["float32", "bfloat16"]


@pytest.fixture(scope="module")
def vlms(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Vlm]:
    """Models prepared for training, as they are when the stage checks them."""
    root = tmp_path_factory.mktemp("families")
    paths = {name: str(save_tiny_family(name, root / name)) for name in FAMILIES}
    loaded = {
        (name, dtype): load_vlm(resolve_model(path), dtype=dtype, device="cpu")
        for name, path in [*paths.items(), ("testbed", "testbed")]
        for dtype in DTYPES
    }
    for vlm in loaded.values():
        ready_model(vlm, "shared-prefix", TrainSettings())
    return loaded


def uneven_list(vlm: Vlm, seed: int = 0) -> CompletionList:
    """Qwen's image takes fewer positions than tokens: the prefix has two different ends."""
    generator = torch.Generator().manual_seed(seed)
    words = [torch.randint(10, 200, (n,), generator=generator).tolist() for n in (4, 8, 1, 11, 19)]
    prompt = encode_prompt(vlm, noise_image(seed, 64, 64), "where is it" + "?" * (seed % 4))
    return CompletionList(prompt, [[*y, vlm.eos_token_ids[0]] for y in words])


def completions_see_each_other(batch: PackedBatch) -> PackedBatch:
    """Plain causal attention over the row."""
    ends = batch.spans.prefix_end
    own_start = torch.where(ends > 0, ends, batch.spans.own_start)
    return replace(batch, spans=replace(batch.spans, own_start=own_start))


def prefix_end_is_hidden(batch: PackedBatch) -> PackedBatch:
    shorter = (batch.spans.prefix_end - 1).clamp(min=0)
    return replace(batch, spans=replace(batch.spans, prefix_end=shorter))


def positions_go_on(batch: PackedBatch) -> PackedBatch:
    """Positions count through the row instead of restarting after the prefix."""
    prefix = int(batch.spans.prefix_end.max())
    first = batch.positions[:, :, prefix : prefix + 1]
    steps = torch.arange(batch.input_ids.shape[1] - prefix)
    through = torch.cat([batch.positions[:, :, :prefix], first + steps], dim=-1)
    return replace(batch, positions=through)


def positions_count_tokens(batch: PackedBatch) -> PackedBatch:
    """Answers start at the prefix's number of tokens instead of the end of its three axes."""
    prefix = int(batch.spans.prefix_end.max())
    positions = batch.positions.clone()
    positions[:, :, prefix:] += prefix - positions[:, :, prefix : prefix + 1]
    assert not torch.equal(positions, batch.positions)
    return replace(batch, positions=positions)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", [*FAMILIES, "testbed"])
def test_healthy_models_pass(vlms: dict[tuple[str, str], Vlm], family: str, dtype: str) -> None:
    vlm = vlms[family, dtype]
    for seed in range(2 if family == "testbed" else 8):
        found = check_shared_prefix(vlm, uneven_list(vlm, seed), max_tokens=10_000)
        assert found.shared <= found.allowed and found.magnitude > 10
        assert dtype == "bfloat16" or found.allowed < 0.01


@pytest.mark.parametrize(
    ("family", "fault"),
    [
        (family, fault)
        for family in FAMILIES
        for fault in (completions_see_each_other, prefix_end_is_hidden, positions_go_on)
    ]
    + [("qwen2_5_vl", positions_count_tokens)],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_broken_prefix_is_refused_with_the_figures(
    vlms: dict[tuple[str, str], Vlm],
    family: str,
    dtype: str,
    fault: Callable[[PackedBatch], PackedBatch],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vlm = vlms[family, dtype]
    monkeypatch.setattr(self_check, "pack_lists", lambda *a, **k: fault(pack_lists(*a, **k)))
    entry = uneven_list(vlm)
    found = self_check.compare_forwards(vlm, entry, max_tokens=10_000)
    assert found.shared > 0.05
    with pytest.raises(InputError, match="not exact on this model") as caught:
        check_shared_prefix(vlm, entry, max_tokens=10_000)
    assert str(found) in str(caught.value)
    assert "train.forward: separate" in str(caught.value.fix)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_changes_its_logits_after_the_head_is_refused(
    vlms: dict[tuple[str, str], Vlm], family: str, dtype: str
) -> None:
    """As Granite divides them and Gemma caps them; our forwards stop at the head."""
    vlm, entry = vlms[family, dtype], uneven_list(vlms[family, dtype])
    check_own_head(vlm, entry)
    # The logits are small: Gemma's cap of 30 is within the noise of bf16.
    cap = 30 if dtype == "float32" else 5
    for change in (lambda logits: logits / 1.5, lambda logits: cap * torch.tanh(logits / cap)):

        def changed(module: Any, args: Any, output: Any, change: Any = change) -> None:
            output.logits = change(output.logits)

        handle = vlm.model.register_forward_hook(changed)
        try:
            with pytest.raises(InputError, match="changes its logits after the head"):
                check_own_head(vlm, entry)
        finally:
            handle.remove()


def test_log_probabilities_that_are_not_numbers_are_refused(
    vlms: dict[tuple[str, str], Vlm], monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = vlms["llava", "float32"]
    monkeypatch.setattr(self_check, "packed_logps", lambda *args: torch.full((2, 5), torch.nan))
    with pytest.raises(InputError, match="nan nats"):
        check_shared_prefix(vlm, uneven_list(vlm), max_tokens=10_000)


# --- families without tests: windows, a softcap, gradients ----------------------------------------


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Vlm]:
    """As loaded, before they are prepared for training."""
    found = {}
    for name in ("gemma3", "gemma2"):
        path = save_untried(name, tmp_path_factory.mktemp(name))
        found[name] = load_vlm(resolve_model(str(path)), dtype="float32", device="cpu")
    return found


def window_counts_row_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer's first token sees what stands before it in the row, and not the prefix's end."""
    original = Spans.within

    def by_place(self: Spans, reach: Reach) -> Spans:
        found = original(self, reach)
        if reach.window is None:
            return found
        first = torch.arange(self.own_start.shape[1]) - reach.window + 1
        own = torch.maximum(found.own_start, first)
        start = torch.minimum(torch.maximum(self.prefix_start, first), found.prefix_end)
        return replace(found, prefix_start=start, own_start=own)

    monkeypatch.setattr(Spans, "within", by_place)


def windows_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spans, "within", lambda spans, reach: spans)


def packed_positions_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        self_check, "pack_lists", lambda *a, **k: positions_go_on(pack_lists(*a, **k))
    )


def packed_attention(
    monkeypatch: pytest.MonkeyPatch, fault: Callable[..., tuple[Any, dict[str, Any]]]
) -> None:
    """Change what attention gets, key and options, where the mask is that of packed rows."""

    def faulty(module: Any, q: Any, k: Any, v: Any, mask: Any, **options: Any) -> Any:
        if mask is not None and mask.dtype != torch.bool:
            k, options = fault(k, options)
        return shared_prefix_attention(module, q, k, v, mask, **options)

    monkeypatch.setitem(AttentionInterface._global_mapping, SPLIT, faulty)


def softcap_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    packed_attention(monkeypatch, lambda key, options: (key, options | {"softcap": None}))


def keys_pass_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values stay as they are."""
    packed_attention(monkeypatch, lambda key, options: (key.detach(), options))


@pytest.mark.parametrize("name", ["gemma3", "gemma2"])
def test_healthy_windows_are_proven_and_nothing_is_left_trainable(
    windowed: dict[str, Vlm], name: str
) -> None:
    vlm = windowed[name]
    way = prove_training(vlm, uneven_list(vlm), max_tokens=10_000)
    assert way.shares_prefix and way.why.startswith("exact on one list; gradients off by ")
    assert not any(parameter.requires_grad for parameter in vlm.model.parameters())
    gradients = compare_gradients(vlm, uneven_list(vlm))
    assert max(gradients.shared) <= 1e-4 and len(gradients.shared) == len(few_weights(vlm)) == 4
    layers = vlm.model.get_decoder().layers  # type: ignore[operator, union-attr]
    assert not any("forward" in vars(layer) for layer in layers)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("gemma3", window_counts_row_places),
        ("gemma3", windows_are_left_out),
        ("gemma3", packed_positions_go_on),
        ("gemma2", window_counts_row_places),
        ("gemma2", softcap_is_left_out),
    ],
)
def test_a_fault_of_a_windowed_model_is_refused(
    windowed: dict[str, Vlm],
    name: str,
    fault: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vlm = windowed[name]
    fault(monkeypatch)
    way = prove_training(vlm, uneven_list(vlm), max_tokens=10_000)
    assert not way.shares_prefix
    assert way.why.startswith("it is not exact on this model: shared prefix against separate")
    with pytest.raises(InputError, match="not exact on this model"):
        check_shared_prefix(vlm, uneven_list(vlm), max_tokens=10_000)


def test_wrong_gradients_of_right_values_are_refused(
    windowed: dict[str, Vlm], monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = windowed["gemma2"]
    keys_pass_no_gradient(monkeypatch)
    assert self_check.compare_forwards(vlm, uneven_list(vlm), max_tokens=10_000).is_exact
    way = prove_training(vlm, uneven_list(vlm), max_tokens=10_000)
    assert not way.shares_prefix
    assert way.why.startswith("it is not exact on this model: gradients off by ")


def test_each_weight_has_an_allowance_of_its_own_and_none_above_the_cap() -> None:
    """3 x 0.01, the rounding of 0.02, and the cap of 0.3 instead of 3 x 0.4."""
    found = GradientComparison((0.02, 0.01, 0.2), (0.01, 0.0, 0.4), rounding=0.02)
    assert found.allowed == pytest.approx((0.03, 0.02, 0.3)) and found.is_exact
    assert str(found) == "gradients off by 0.02 (allowed 0.03)"  # two thirds of each limit or less
    for shared, words in (
        ((0.04, 0.01, 0.2), "0.04 (allowed 0.03)"),
        ((0.02, 0.03, 0.2), "0.03 (allowed 0.02)"),
        ((0.02, 0.01, 0.5), "0.5 (allowed 0.3)"),
        ((0.02, math.nan, 0.2), "nan (allowed 0.02)"),
    ):
        other = replace(found, shared=shared)
        assert not other.is_exact and str(other) == f"gradients off by {words}"


def test_decoder_layers_keep_only_their_input_while_gradients_are_compared(
    windowed: dict[str, Vlm],
) -> None:
    """What the backward pass keeps of a layer's inside is nothing: the model may just fit."""
    vlm = windowed["gemma3"]
    kept: list[int] = []
    running: list[str] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[-1] += bool(running)
        return tensor

    layers = vlm.model.get_decoder().layers  # type: ignore[operator, union-attr]
    hooks = [layers[0].mlp.register_forward_pre_hook(lambda *_: running.append("mlp"))]
    hooks.append(layers[0].mlp.register_forward_hook(lambda *_: running.clear()))
    entry = uneven_list(vlm)
    try:
        for again in (False, True):
            kept.append(0)
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                weights = few_weights(vlm)
                for weight in weights:
                    weight.requires_grad_(True)
                with self_check._layers_computed_again(vlm) if again else nullcontext():
                    packed_logps(vlm.model, pack_lists(vlm, [entry]))
    finally:
        for hook in hooks:
            hook.remove()
        vlm.model.requires_grad_(False)
    assert kept[0] > 0 and kept[1] == 0


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("full"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_gradients_that_do_not_fit_into_memory_are_left_out_and_that_is_said(
    windowed: dict[str, Vlm], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    vlm = windowed["gemma2"]
    monkeypatch.setattr(self_check, "_gradients", failing(error))
    way = prove_training(vlm, uneven_list(vlm), max_tokens=10_000)
    assert way.shares_prefix
    assert way.why.startswith("exact on one list; gradients not compared: memory ran out (")
    assert "shared prefix against separate forwards" in way.why


def test_gradients_that_cannot_be_computed_are_a_reason_but_no_error_of_the_accelerator_is(
    windowed: dict[str, Vlm], monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = windowed["gemma2"]
    monkeypatch.setattr(self_check, "_gradients", failing(NotImplementedError("no backward")))
    way = prove_training(vlm, uneven_list(vlm), max_tokens=10_000)
    why = "its gradients cannot be computed (NotImplementedError: no backward)"
    assert (way.shares_prefix, way.why) == (False, why)
    monkeypatch.setattr(self_check, "_gradients", failing(torch.AcceleratorError("bad access")))
    with pytest.raises(torch.AcceleratorError, match="bad access"):
        prove_training(vlm, uneven_list(vlm), max_tokens=10_000)


def failing(error: Exception) -> Callable[..., None]:
    def fail(*given: Any, **how: Any) -> None:
        raise error

    return fail


# Layers with a recurrent state.


@pytest.fixture(scope="module")
def hybrids(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], Vlm]:
    found = {}
    for layers in (4, 16):
        path = tmp_path_factory.mktemp(f"qwen3_5-{layers}")
        save_tiny_qwen3_5(path, seed=2, num_hidden_layers=layers)
        for dtype in DTYPES:
            vlm = load_vlm(resolve_model(str(path)), dtype=dtype, device="cpu")
            use_recurrent_steps(base_model(vlm.model))
            found[layers, dtype] = vlm
    return found


def states_are(
    change: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[pytest.MonkeyPatch], None]:
    """The states that answers begin with are changed so."""

    def fault(monkeypatch: pytest.MonkeyPatch) -> None:
        original = LayerStates.repeated
        monkeypatch.setattr(
            LayerStates, "repeated", lambda self, counts: original(self, counts).map(change)
        )

    return fault


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layers", [4, 16])
def test_healthy_hybrids_are_proven(
    hybrids: dict[tuple[int, str], Vlm], layers: int, dtype: str
) -> None:
    vlm = hybrids[layers, dtype]
    way = prove_training(vlm, uneven_list(vlm), max_tokens=10_000)
    assert way.shares_prefix and "gradients off by" in way.why


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layers", [4, 16])
def test_states_that_pass_no_gradient_are_refused(
    hybrids: dict[tuple[int, str], Vlm], layers: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values are right; plain runs of the last weights differ by half in bf16 with 16 layers."""
    vlm = hybrids[layers, dtype]
    states_are(torch.Tensor.detach)(monkeypatch)
    assert self_check.compare_forwards(vlm, uneven_list(vlm), max_tokens=10_000).is_exact
    way = prove_training(vlm, uneven_list(vlm), max_tokens=10_000)
    assert not way.shares_prefix
    assert way.why.startswith("it is not exact on this model: gradients off by ")


@pytest.mark.parametrize("place", [0, -1], ids=["first", "last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layers", [4, 16])
def test_states_of_another_list_are_refused(
    hybrids: dict[tuple[int, str], Vlm],
    layers: int,
    dtype: str,
    place: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All answers continue from the state that the first or the last prompt has left."""
    vlm = hybrids[layers, dtype]
    states_are(lambda state: state[[place]].expand_as(state).clone())(monkeypatch)
    way = prove_training(vlm, uneven_list(vlm), max_tokens=10_000)
    assert not way.shares_prefix
    assert way.why.startswith("it is not exact on this model: shared prefix against separate")


def test_the_second_list_of_a_hybrid_has_another_prompt_of_the_same_kind(
    hybrids: dict[tuple[int, str], Vlm],
) -> None:
    vlm = hybrids[4, "float32"]
    entry = uneven_list(vlm)
    first, second = self_check._as_in_a_batch(vlm, entry, 10_000)
    assert first is entry and second.completions == entry.completions[:2]
    ids, others = first.prompt.input_ids, second.prompt.input_ids
    is_image = torch.isin(ids, torch.tensor(vlm.image_token_ids))
    last = int(is_image.nonzero().max())
    assert torch.equal(ids[: last + 1], others[: last + 1]) and not torch.equal(ids, others)
    assert torch.equal(ids[last + 1 :].sort().values, others[last + 1 :].sort().values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "change", [torch.zeros_like, lambda state: state.roll(1, 1)], ids=["none", "of-another-head"]
)
def test_wrong_states_are_refused(
    hybrids: dict[tuple[int, str], Vlm],
    dtype: str,
    change: Callable[[torch.Tensor], torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each answer's state is none, or another head's."""
    vlm = hybrids[4, dtype]
    states_are(change)(monkeypatch)
    way = prove_training(vlm, uneven_list(vlm), max_tokens=10_000)
    assert not way.shares_prefix
    assert way.why.startswith("it is not exact on this model: shared prefix against separate")


def test_the_figures_are_in_the_message() -> None:
    """Allowed is 3 x 0.05: more than what rounding does, 1e-4 + 1e-5 x 200 = 0.0021."""
    found = Comparison(shared=0.02, plain=0.05, rounding=0.0021, magnitude=200.0)
    assert found.allowed == pytest.approx(0.15)
    assert str(found) == (
        "shared prefix against separate forwards: 0.02 nats (allowed 0.15; separate forwards "
        "among themselves 0.05, log-probabilities up to 200)"
    )
    assert replace(found, plain=0.0).allowed == pytest.approx(0.0021)


def test_plain_rows_keep_the_token_budget(
    vlms: dict[tuple[str, str], Vlm], monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = vlms["llava", "float32"]
    entry = uneven_list(vlm)
    sizes: list[tuple[int, int]] = []

    def recorded(*args: Any, **kwargs: Any) -> Any:
        batch = separate_lists(*args, **kwargs)
        sizes.append(tuple(batch.input_ids.shape))
        return batch

    monkeypatch.setattr(self_check, "separate_lists", recorded)
    longest = entry.prompt.num_tokens + 20
    whole = check_shared_prefix(vlm, entry, max_tokens=10_000)
    assert [rows for rows, _ in sizes] == [5, 1, 1, 1, 1, 1, 5]  # the second run row by row
    assert [sizes[i][1] - longest for i in (0, -2, -1)] == [0, 67, 131]  # the longest is last
    sizes.clear()
    budget = 2 * (longest + 67)
    parts = check_shared_prefix(vlm, entry, max_tokens=budget)
    assert all(rows * length <= budget or rows == 1 for rows, length in sizes)
    assert sum(rows for rows, _ in sizes) == 15
    assert parts.magnitude == pytest.approx(whole.magnitude, abs=1e-4)


@pytest.mark.parametrize("row_lengths", ["any", "bucketed"])
def test_the_shared_prefix_keeps_the_token_budget(
    vlms: dict[tuple[str, str], Vlm], row_lengths: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice where that fits, else with fewer completions the second time, or once; in one row."""
    vlm = vlms["llava", "float32"]
    entry = uneven_list(vlm)
    tokens, prompt = entry.num_packed_tokens, entry.prompt.num_tokens
    assert [len(y) - 1 for y in entry.completions] == [4, 8, 1, 11, 19]
    batches: list[PackedBatch] = []

    def recorded(*args: Any, **kwargs: Any) -> PackedBatch:
        batches.append(pack_lists(*args, **kwargs, one_row=True))
        return batches[-1]

    monkeypatch.setattr(self_check, "pack_lists", recorded)
    for budget, again in ((2 * tokens, 5), (tokens + prompt + 13, 3), (tokens + prompt, 0)):
        found = self_check.compare_forwards(vlm, entry, max_tokens=budget, row_lengths=row_lengths)
        assert found.shared <= found.allowed
        counts = batches[-1].mask.sum(1).tolist()
        assert counts == [5, again] if again else [5]
        assert batches[-1].num_packed <= budget
    self_check.compare_forwards(vlm, entry, max_tokens=1000, row_lengths=row_lengths)
    length = {"any": -(-2 * tokens // 128) * 128, "bucketed": 1024}[row_lengths]
    assert batches[-1].input_ids.shape == (1, length)


def test_the_check_compiles_nothing_that_the_reference_does_not_use(
    vlms: dict[tuple[str, str], Vlm],
) -> None:
    """Neither rows of this check alone, nor plain rows."""
    torch._dynamo.reset()
    vlm = vlms["llava", "float32"]
    counter = CompileCounter()
    layers = vlm.model.get_decoder().layers  # type: ignore[operator, union-attr]
    before = [layer._compiled_call_impl for layer in layers]
    try:
        compile_layers(vlm.model, "any", backend=counter)
        entry = uneven_list(vlm)
        check_own_head(vlm, entry)
        assert counter.frame_count == 0
        check_shared_prefix(vlm, entry, max_tokens=10_000)
        assert counter.frame_count == 1
        lists = [uneven_list(vlm, seed) for seed in (1, 2, 3)]
        with torch.no_grad():
            packed_logps(vlm.model.eval(), pack_lists(vlm, lists))
        assert counter.frame_count == 1
    finally:
        for layer, compiled in zip(layers, before, strict=True):
            layer._compiled_call_impl = compiled
        torch._dynamo.reset()


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(vlms: dict[tuple[str, str], Vlm], training: bool) -> None:
    vlm = vlms["llava", "float32"]
    vlm.model.train(training)
    check_shared_prefix(vlm, uneven_list(vlm), max_tokens=10_000)
    assert vlm.model.training is training
    vlm.model.eval()
