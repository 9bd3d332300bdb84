"""Attention in two flash parts against one softmax over all keys that a token sees."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tiny_families import MODEL_TYPES, save_tiny_family
from tiny_training import assert_same, run, trainable_vlm, uneven_lists
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from perpo_pipeline.train.layout import PackedList
from perpo_pipeline.train.levers.flash_parts import (
    _flash,
    _flash_backward,
    attention_in_parts,
    list_parts,
)
from perpo_pipeline.train.self_check import compare_forwards
from perpo_pipeline.vlm.attention import PARTS
from perpo_pipeline.vlm.models import base_model

# Two lists in a row of 30 places: 3 before, 2 between and 3 after them are padding.
LISTS = [PackedList(3, 6, (4, 0, 2)), PackedList(17, 5, (3, 2))]
PLACES = 30


def visible(lists: Sequence[PackedList], num_places: int) -> Tensor:
    """(T, T) bool: the rule of packed lists, token by token; padding is of no interest."""
    sees = torch.eye(num_places, dtype=torch.bool)
    for entry in lists:
        prefix = range(entry.start, entry.start + entry.prefix_tokens)
        for query in prefix:
            sees[query, entry.start : query + 1] = True
        start = prefix.stop
        for count in entry.inside:
            for query in range(start, start + count):
                sees[query, prefix.start : prefix.stop] = True
                sees[query, start : query + 1] = True
            start += count
    return sees


def real(lists: Sequence[PackedList]) -> list[int]:
    return [
        place
        for entry in lists
        for place in range(entry.start, entry.start + entry.prefix_tokens + sum(entry.inside))
    ]


def test_the_parts_cover_each_place_once() -> None:
    segments, answers, answer_ends, prefixes, prefix_ends, *longest = list_parts(
        LISTS, PLACES, "cpu"
    )
    assert segments.tolist() == [0, 3, 9, 13, 15, 17, 22, 25, 27, 30]
    assert answers.tolist() == [*range(9, 15), *range(22, 27)]
    assert answer_ends.tolist() == [0, 6, 11]
    assert prefixes.tolist() == [*range(3, 9), *range(17, 22)]
    assert prefix_ends.tolist() == [0, 6, 11]
    assert list(map(int, longest)) == [6, 6, 6]
    assert segments.dtype == answer_ends.dtype == prefix_ends.dtype == torch.int32


def test_padding_is_cut_into_pieces() -> None:
    segments = list_parts([PackedList(0, 4, (1, 1))], 300, "cpu")[0]
    assert segments.tolist() == [0, 4, 5, 6, 134, 262, 300]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_joined_parts_are_one_softmax_with_its_gradients(groups: int, dtype: torch.dtype) -> None:
    """Against scores over all keys in fp64, with heads that share keys."""
    torch.manual_seed(0)
    q = torch.randn(PLACES, 4, 16, dtype=dtype, requires_grad=True)
    k, v = (torch.randn(PLACES, groups, 16, dtype=dtype, requires_grad=True) for _ in range(2))
    out, lse = attention_in_parts(q, k, v, *list_parts(LISTS, PLACES, "cpu"), 0.25)
    places = real(LISTS)
    weights = torch.zeros(PLACES, 4, 16)
    weights[places] = torch.randn(len(places), 4, 16)
    ours = torch.autograd.grad((out * weights).sum(), [q, k, v])

    exact = [t.detach().double().requires_grad_() for t in (q, k, v)]
    heads = [exact[0], *(t.repeat_interleave(4 // groups, dim=1) for t in exact[1:])]
    scores = torch.einsum("qhd,khd->hqk", heads[0], heads[1]) * 0.25
    scores = scores.masked_fill(~visible(LISTS, PLACES), -torch.inf)
    expected = torch.einsum("hqk,khd->qhd", scores.softmax(-1), heads[2])
    expected_gradients = torch.autograd.grad((expected * weights).sum(), exact)
    bound = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(out[places].double(), expected[places], atol=bound, rtol=bound)
    torch.testing.assert_close(
        lse[:, places].double(), scores.logsumexp(-1)[:, places], atol=bound, rtol=bound
    )
    for gradient, wanted in zip(ours, expected_gradients, strict=True):
        torch.testing.assert_close(gradient.double(), wanted, atol=2 * bound, rtol=bound)


def test_the_operators_are_what_a_compiler_takes_them_for() -> None:
    q, k, v = (torch.randn(PLACES, 2, 8, requires_grad=True) for _ in range(3))
    arguments = (q, k, v, *list_parts(LISTS, PLACES, "cpu"), 0.3)
    torch.library.opcheck(attention_in_parts, arguments)


@pytest.fixture(scope="module", params=MODEL_TYPES)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_family(request.param, tmp_path_factory.mktemp(request.param))


def test_all_families_have_the_same_log_probabilities_and_gradients(directory: Path) -> None:
    """In rows of their own and in one row, with checkpointed layers, and beside other levers."""
    expected = run(trainable_vlm(directory))
    vlm = trainable_vlm(directory, ["flash-parts"])
    assert base_model(vlm.model).config.get_text_config()._attn_implementation == PARTS
    assert_same(run(vlm), expected)
    assert_same(run(vlm, one_row=True), expected)
    levers = ["flash-parts", "lora-addmm", "joined-lora"]
    assert_same(run(trainable_vlm(directory, levers, gradient_checkpointing=True)), expected)
    found = compare_forwards(vlm, uneven_lists(vlm)[0], max_tokens=10_000)
    assert found.shared <= found.allowed  # plain rows are still plain, with padding on their left


@pytest.mark.parametrize("directory", ["llava"], indirect=True)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # Dynamo looks, and hides
def test_compiled_layers_stay_one_graph_for_all_lengths(directory: Path) -> None:
    plain, vlm = trainable_vlm(directory), trainable_vlm(directory, ["flash-parts"])
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    layers = base_model(vlm.model).get_decoder().layers
    for layer in layers:
        layer.compile(backend=counter, dynamic=True, fullgraph=True)
    seen = []
    for num in (3, 2, 3):  # lists, and so other lengths
        assert_same(run(vlm, num, one_row=True), run(plain, num))
        seen.append(counter.frame_count)
    assert seen[0] > 0 and len(set(seen)) == 1, seen
    torch._dynamo.reset()


def test_flash_on_a_gpu_takes_what_it_is_given() -> None:
    """Shapes and dtypes of its two operators, without a GPU: grouped heads, several lists."""
    with FakeTensorMode():
        query = torch.empty(PLACES, 4, 64, dtype=torch.bfloat16, device="cuda")
        key = torch.empty(PLACES, 2, 64, dtype=torch.bfloat16, device="cuda")
        ends = torch.empty(10, dtype=torch.int32, device="cuda")
        out, lse = _flash(query, key, key, ends, ends, (6, 6), True, 0.1)
        grads = _flash_backward((query, query, key, key, out, lse), ends, ends, (6, 6), True, 0.1)
    assert out.shape == query.shape and out.dtype == query.dtype
    assert lse.shape == (4, PLACES) and lse.dtype == torch.float32
    assert [grad.shape for grad in grads] == [query.shape, key.shape, key.shape]
