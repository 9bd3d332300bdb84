"""Layers with a recurrent state on rows that share a prefix, against rows of prefix and answer."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_recurrent import LAYERS, WIDTH, OneLayer, ready, tiny_layer
from torch import Tensor, nn
from transformers import JambaConfig
from transformers.models.jamba.modeling_jamba import JambaMambaMixer

from perpo_pipeline.errors import InputError
from perpo_pipeline.train.layout import PackedList
from perpo_pipeline.train.recurrent_steps import packed_steps
from perpo_pipeline.vlm.recurrent import (
    LayerStates,
    PackedSteps,
    masks_by_layer_type,
    takes_left_padding,
    use_recurrent_steps,
    uses_recurrent_steps,
)

# Prefixes and answers above and below the 64 tokens of a gated delta net's chunk (Mamba2: 16). One
# prefix is shorter than a convolution's kernel, one answer has no token inside, one a single token.
LISTS = [(70, (5, 66, 0, 20)), (2, (3,)), (130, (12, 1, 40)), (70, (1, 0)), (9, (0,))]
LENGTH = 330


def layout(one_row: bool, length: int = LENGTH) -> tuple[list[PackedList], int]:
    """The lists, and the number of places of all rows."""
    if not one_row:
        lists = [PackedList(b * length, p, inside) for b, (p, inside) in enumerate(LISTS)]
        return lists, len(LISTS) * length
    lists, start = [], 0
    for prefix, inside in LISTS:
        lists.append(PackedList(start, prefix, inside))
        start += prefix + sum(inside)
    return lists, start + 7  # padding at the row's end


def answers(entry: PackedList) -> list[range]:
    """The places of each answer's tokens."""
    found, start = [], entry.answers
    for count in entry.inside:
        found.append(range(start, start + count))
        start += count
    return found


def separate(layer: nn.Module, hidden: Tensor, lists: Sequence[PackedList]) -> Tensor:
    """(T, D) the layer's outputs, each prefix by itself and each answer after a copy of it."""
    outputs = torch.zeros_like(hidden)
    for entry in lists:
        prefix = torch.arange(entry.start, entry.answers)
        outputs = outputs.index_copy(0, prefix, layer(hidden[prefix][None])[0])
        for places in answers(entry):
            if places:
                own = torch.tensor(list(places))
                row = torch.cat([prefix, own])
                outputs = outputs.index_copy(0, own, layer(hidden[row][None])[0, len(prefix) :])
    return outputs


Results = tuple[Tensor, dict[str, Tensor]]


def results(
    layer: nn.Module, lists: Sequence[PackedList], places: int, run: Callable[[Tensor], Tensor]
) -> Results:
    """Outputs at the tokens, and gradients of the inputs and of all parameters."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(places, WIDTH, generator=generator).requires_grad_()
    weights = torch.randn(places, WIDTH, generator=generator)
    used = [p for e in lists for p in range(e.start, e.answers + sum(e.inside))]
    layer.zero_grad()
    output = run(hidden)[used]
    (output * weights[used]).sum().backward()
    gradients = {n: p.grad.clone() for n, p in layer.named_parameters() if p.grad is not None}
    assert hidden.grad is not None
    return output.detach(), gradients | {"hidden": hidden.grad}


def packed_results(
    name: str, one_row: bool, steps: Callable[..., PackedSteps] = packed_steps
) -> Results:
    layer = tiny_layer(name)
    model = ready(OneLayer(layer))
    lists, places = layout(one_row)
    found = steps(lists, places, "cpu", left_padding=takes_left_padding(model))
    shape = (1, places) if one_row else (len(LISTS), LENGTH)
    return results(
        layer,
        lists,
        places,
        lambda h: layer(hidden_states=h.view(*shape, -1), attention_mask=found).flatten(0, 1),
    )


def expected_results(name: str, one_row: bool) -> Results:
    layer = tiny_layer(name)
    lists, places = layout(one_row)
    return results(layer, lists, places, lambda h: separate(layer, h, lists))


def errors(ours: Results, expected: Results) -> tuple[float, float]:
    """The largest difference of an output, and the largest relative one of a gradient."""
    assert ours[1].keys() == expected[1].keys()
    assert all(gradient.norm() > 0 for gradient in expected[1].values())
    value = (ours[0] - expected[0]).abs().max() / expected[0].abs().max().clamp(min=1)
    relative = [(ours[1][n] - g).norm() / g.norm() for n, g in expected[1].items()]
    return float(value), float(max(relative))


@pytest.mark.parametrize("one_row", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_packed_rows_give_the_layers_own_outputs_and_gradients(name: str, one_row: bool) -> None:
    value, gradient = errors(packed_results(name, one_row), expected_results(name, one_row))
    assert value < 1e-5
    assert gradient < 1e-4


def shared_state(self: LayerStates, counts: Sequence[int]) -> LayerStates:
    """Every answer starts from the first prefix's state."""
    return self.map(lambda s: s[:1].expand(sum(counts), *s.shape[1:]))


def earlier_inputs(self: LayerStates, *args: Any, conv_kernel_size: int, **kwargs: Any) -> Tensor:
    """The convolution's state ends one token too early."""
    whole = own_update(self, *args, conv_kernel_size=conv_kernel_size, **kwargs)
    early = torch.nn.functional.pad(whole, (conv_kernel_size, 0))
    self.conv_states[0] = early[..., -conv_kernel_size - 1 : -1]
    return whole


def without_gradients(self: LayerStates, counts: Sequence[int]) -> LayerStates:
    """The copies have the values only, as with transformers' cache."""
    return own_repeated(self, counts).map(Tensor.detach)


own_update, own_repeated = LayerStates.update_conv_state, LayerStates.repeated


@pytest.mark.parametrize("name", ["qwen3_5", "lfm2", "bamba"])
@pytest.mark.parametrize(
    ("method", "fault", "values"),
    [
        ("repeated", shared_state, True),
        ("update_conv_state", earlier_inputs, True),
        ("repeated", without_gradients, False),
    ],
)
def test_planted_faults_are_seen(
    monkeypatch: pytest.MonkeyPatch, name: str, method: str, fault: Any, values: bool
) -> None:
    monkeypatch.setattr(LayerStates, method, fault)
    value, gradient = errors(packed_results(name, True), expected_results(name, True))
    assert (value > 1e-2) == values
    assert gradient > 1e-2


def test_an_answer_that_continues_from_another_one_is_seen() -> None:
    """The fault of a plain forward over the row: one list of one long answer instead of several."""

    def one_answer(lists: Sequence[PackedList], *args: Any, **kwargs: Any) -> PackedSteps:
        longer = [replace(entry, inside=(sum(entry.inside),)) for entry in lists]
        return packed_steps(longer, *args, **kwargs)

    ours = packed_results("qwen3_5", True, one_answer)
    assert errors(ours, expected_results("qwen3_5", True))[0] > 1e-2


def test_left_padding_where_the_layer_adds_a_bias_is_seen() -> None:
    """So `takes_left_padding` matters: it refuses these layers, and takes those without a bias."""

    def padded(*args: Any, left_padding: bool) -> PackedSteps:
        assert not left_padding
        return packed_steps(*args, left_padding=True)

    ours = packed_results("lfm2-bias", True, padded)
    assert errors(ours, expected_results("lfm2-bias", True))[0] > 1e-2
    taken = {name for name in LAYERS if takes_left_padding(ready(OneLayer(tiny_layer(name))))}
    assert {"qwen3_5", "qwen3_next", "lfm2"} <= taken
    assert not {"lfm2-bias", "bamba"} & taken  # Mamba2's convolution has a bias


def test_prefixes_of_one_length_run_together() -> None:
    lists, places = layout(one_row=True)
    together = packed_steps(lists, places, "cpu", left_padding=True)
    assert [some.places.shape for some in together.prefixes] == [(5, 130)]
    by_length = packed_steps(lists, places, "cpu", left_padding=False)
    assert [some.places.shape for some in by_length.prefixes] == [(2, 70), (1, 2), (1, 130), (1, 9)]
    assert all(some.is_token is None for some in by_length.prefixes)
    assert together.answers.shape == (8, 66) and together.counts == (3, 1, 3, 1, 0)


def test_without_tokens_inside_there_are_only_prefixes() -> None:
    lists = [PackedList(0, 5, (0, 0)), PackedList(5, 3, (0,))]
    steps = packed_steps(lists, 10, "cpu", left_padding=True)
    layer = tiny_layer("qwen3_5")
    use_recurrent_steps(OneLayer(layer))
    hidden = torch.randn(1, 10, WIDTH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        packed = layer(hidden, attention_mask=steps)
        for places in (slice(0, 5), slice(5, 8)):
            own = layer(hidden[:, places])
            torch.testing.assert_close(packed[:, places], own, atol=1e-6, rtol=0)


def test_a_layer_still_takes_an_ordinary_mask() -> None:
    layer, own = tiny_layer("qwen3_5"), tiny_layer("qwen3_5")
    model = OneLayer(layer)
    assert not uses_recurrent_steps(model)
    use_recurrent_steps(model)
    use_recurrent_steps(model)  # a second time changes nothing
    assert uses_recurrent_steps(model) and isinstance(layer, type(own))
    hidden = torch.randn(2, 6, WIDTH, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    for attention_mask in (None, mask):
        expected = own(hidden, attention_mask=attention_mask)
        assert torch.equal(layer(hidden, attention_mask=attention_mask), expected)


def test_a_layer_that_ignores_its_state_is_refused() -> None:
    """Mamba's first version scans several tokens from zero, also with a state."""
    config = JambaConfig(hidden_size=WIDTH, num_hidden_layers=2, mamba_d_state=8, mamba_dt_rank=4)
    model = OneLayer(JambaMambaMixer(config, 0))
    with pytest.raises(InputError, match=r"JambaMambaMixer .* ignores the state"):
        use_recurrent_steps(model)
    assert not uses_recurrent_steps(model)


def test_a_layer_with_another_cache_is_refused() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden_size = WIDTH
            self.conv = nn.Conv1d(WIDTH, WIDTH, 4, groups=WIDTH)

        def forward(self, hidden_states: Tensor, state: Tensor | None = None) -> Tensor:
            return hidden_states

    with pytest.raises(InputError, match="no cache that we know"):
        use_recurrent_steps(OneLayer(Own()))


def test_layers_of_a_kind_that_is_not_found_are_refused() -> None:
    """For example linear attention without a convolution, as in MiniMax."""
    types = ["linear_attention", "full_attention", "linear_attention"]
    with pytest.raises(InputError, match=r"2 layers .* but only 1 of a kind"):
        use_recurrent_steps(OneLayer(tiny_layer("qwen3_5"), types))
    use_recurrent_steps(OneLayer(tiny_layer("qwen3_5"), types[:2]))


def test_each_layer_type_gets_its_mask() -> None:
    lists, places = layout(one_row=True)
    steps = packed_steps(lists, places, "cpu", left_padding=True)
    mask = torch.zeros(1)
    expected = {"full_attention": mask, "linear_attention": steps, "conv": steps}
    assert masks_by_layer_type(mask, steps) == expected
    both = masks_by_layer_type({"full_attention": mask, "sliding_attention": mask}, steps)
    assert both == expected | {"sliding_attention": mask}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # Dynamo looks, and hides
def test_a_compiled_layer_is_not_compiled_again_for_other_lists() -> None:
    """Its own code runs as it is, between the compiled parts of its decoder layer."""
    layer = tiny_layer("qwen3_5")
    model = OneLayer(layer)
    use_recurrent_steps(model)
    graphs: list[Any] = []

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer = layer

        def forward(self, hidden: Tensor, steps: Any) -> Tensor:
            return self.mixer(hidden_states=hidden * 2, attention_mask=steps) + hidden

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    decoder = Decoder()
    compiled = torch.compile(decoder, backend=count, dynamic=True)
    generator = torch.Generator().manual_seed(0)
    made = []
    for lists in (
        [PackedList(0, 9, (4, 3))],
        [PackedList(0, 5, (3, 2, 6))],
        [PackedList(0, 7, (9,))],
    ):
        places = lists[0].answers + sum(lists[0].inside)
        steps = packed_steps(lists, places, "cpu", left_padding=True)
        hidden = torch.randn(1, places, WIDTH, generator=generator)
        torch.testing.assert_close(compiled(hidden, steps), decoder(hidden, steps))
        made.append(len(graphs))
    assert made[0] > 0 and made == [made[0]] * 3
