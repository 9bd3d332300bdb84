"""Masks of packed rows, compared with the rule token by token and with torch's own masks."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_families import save_tiny_family
from tiny_models import noise_image
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.utils._python_dispatch import TorchDispatchMode

from perpo_pipeline.train.separate_rows import separate_lists, separate_logps
from perpo_pipeline.train.shared_prefix import CompletionList, pack_lists, packed_logps
from perpo_pipeline.vlm import attention
from perpo_pipeline.vlm.attention import (
    BLOCK_TOKENS,
    KERNEL_OPTIONS,
    PADDING,
    PREFIX,
    Spans,
    additive_mask,
    block_mask,
    causal_segments,
    packed_mask,
    use_shared_prefix_attention,
    uses_flex_attention,
    visible_segments,
)
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.models import Vlm
from perpo_pipeline.vlm.prompts import encode_prompt
from perpo_pipeline.vlm.windows import TOWERS_WITH_PARTS, WINDOWS

PackedList = tuple[int, Sequence[int]]  # tokens of the prefix, and of each answer
Layout = Sequence[Sequence[PackedList]]  # the lists of each row

# Lengths on both sides of the blocks' borders; 0: an answer of one token, which is never an input.
ANSWERS = st.lists(st.sampled_from([0, 1, 2, 63, 100, 127, 128, 129]), max_size=3)
PREFIXES = st.sampled_from([1, 2, 100, 127, 128, 129, 260])
LAYOUTS = st.lists(
    st.lists(st.tuples(PREFIXES, ANSWERS), min_size=1, max_size=2), min_size=1, max_size=3
)


def block_multiple(layout: Layout) -> int:
    longest = max(sum(prefix + sum(answers) for prefix, answers in row) for row in layout)
    return -(-longest // BLOCK_TOKENS) * BLOCK_TOKENS


def spans_of(layout: Layout, length: int) -> Spans:
    """Spans built list by list, each row padded to `length`."""
    table = torch.zeros(3, len(layout), length, dtype=torch.long)
    for r, row in enumerate(layout):
        place = 0
        for prefix, answers in row:
            begin, end = place, place + prefix
            table[2, r, begin:end] = begin
            place = end
            for answer in answers:
                own = torch.tensor([begin, end, place])[:, None]
                table[:, r, place : place + answer] = own
                place += answer
        table[2, r, place:] = torch.arange(place, length)
    return Spans(*table)


def visible_by_the_rule(layout: Layout, length: int) -> Tensor:
    """(R, T, T) bool from labels: same list, not later, key in the prefix or the same answer.

    A padding token has a list of its own, so that it sees only itself.
    """
    dense = torch.zeros(len(layout), length, length, dtype=torch.bool)
    for r, row in enumerate(layout):
        lists: list[int] = []
        parts: list[int] = []  # 0 = prefix, 1.. = answers
        for number, (prefix, answers) in enumerate(row):
            for part, tokens in enumerate([prefix, *answers]):
                lists += [number] * tokens
                parts += [part] * tokens
        padding = range(length - len(lists))
        owner = torch.tensor([*lists, *(len(row) + i for i in padding)])
        part = torch.tensor([*parts, *(0 for _ in padding)])
        same_list = owner[:, None] == owner
        seen = (part == 0) | (part[:, None] == part)
        dense[r] = same_list & seen & torch.ones(length, length).tril().bool()
    return dense


def blocks(counts: Tensor, indices: Tensor) -> Tensor:
    """(R, 1, Q) counts and (R, 1, Q, K) indices, used ones first -> (R, Q, K) bool."""
    dense = torch.zeros_like(indices, dtype=torch.bool)
    used = torch.arange(indices.shape[-1]) < counts[..., None]
    return dense.scatter(-1, indices.long(), used).squeeze(1)


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that an operation returned."""

    numel = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_spans_equal_the_rule_token_by_token() -> None:
    """A prefix of 2 with answers of 2 and 1, a prefix of 1 without any, one of padding."""
    rows = ["1......", "11.....", "111....", "1111...", "11..1..", ".....1.", "......1"]
    expected = torch.tensor([[seen == "1" for seen in row] for row in rows])
    layout = [[(2, [2, 1]), (1, [])]]
    assert torch.equal(spans_of(layout, 7).visible()[0], expected)
    assert torch.equal(visible_by_the_rule(layout, 7)[0], expected)


@settings(max_examples=50, deadline=None)
@given(LAYOUTS)
def test_the_first_positions_are_causal_and_the_last_rows_equal_those_of_the_whole_mask(
    layout: Layout,
) -> None:
    length = block_multiple(layout)
    dense, spans = visible_by_the_rule(layout, length), spans_of(layout, length)
    assert torch.equal(spans.visible(), dense)
    first = spans.num_causal()
    assert first == min(row[0][0] for row in layout)
    assert torch.equal(
        dense[:, :first, :first], torch.ones(first, first).tril().bool().expand(len(layout), -1, -1)
    )
    assert not dense[:, :first, first:].any()
    assert torch.equal(spans.visible(first), dense[:, first:])


@settings(max_examples=50, deadline=None)
@given(LAYOUTS)
def test_block_masks_equal_those_that_torch_makes_from_the_dense_rule(layout: Layout) -> None:
    length = block_multiple(layout)
    dense, spans = visible_by_the_rule(layout, length), spans_of(layout, length)
    ours = block_mask(spans)
    assert ours.shape == (len(layout), 1, length, length)
    theirs = create_block_mask(
        lambda row, head, query, key: dense[row, query, key],
        len(layout),
        None,
        length,
        length,
        device="cpu",
    )
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    # Inside the blocks: each pair of a partial block separately, all pairs of a full block.
    row, query, key = torch.meshgrid(
        torch.arange(len(layout)), torch.arange(length), torch.arange(length), indexing="ij"
    )
    assert torch.equal(ours.mask_mod(row, torch.tensor(0), query, key), dense)
    full, all_full = (
        blocks(mask.full_kv_num_blocks, mask.full_kv_indices) for mask in (ours, theirs)
    )
    assert not (full & ~all_full).any()
    assert not (full & blocks(ours.kv_num_blocks, ours.kv_indices)).any()
    # What the backward pass reads: the same blocks, by key.
    assert torch.equal(
        blocks(ours.q_num_blocks, ours.q_indices), blocks(ours.kv_num_blocks, ours.kv_indices).mT
    )
    assert torch.equal(blocks(ours.full_q_num_blocks, ours.full_q_indices), full.mT)


def test_a_long_prefix_is_full_blocks() -> None:
    """A prefix of 5 blocks and two answers of 1 block: only the diagonal is masked in part."""
    mask = block_mask(spans_of([[(640, [128, 128])]], 896))
    assert mask.full_kv_num_blocks.tolist() == [[[0, 1, 2, 3, 4, 5, 5]]]
    assert mask.kv_num_blocks.tolist() == [[[1] * 7]]
    assert mask.kv_indices[0, 0, :, 0].tolist() == list(range(7))


def test_a_block_mask_is_made_without_a_tensor_of_every_pair() -> None:
    length = 8192
    spans = spans_of([[(5000, [100] * 20), (636, [25] * 20)]], length)
    with LargestTensor() as ours:
        block_mask(spans)
    assert ours.numel == length * length // BLOCK_TOKENS
    with LargestTensor() as theirs:  # the recorder sees torch's own tensors
        create_block_mask(lambda row, head, q, k: q >= k, 1, None, 1024, 1024, device="cpu")
    assert theirs.numel >= 1024 * 1024


def test_rows_that_are_not_a_multiple_of_the_block_are_refused() -> None:
    with pytest.raises(ValueError, match="200 tokens, which is not a multiple of 128"):
        block_mask(spans_of([[(150, [50])]], 200))


def test_a_row_may_see_nothing_in_the_first_keys_that_the_kernel_reads() -> None:
    """So ROWS_GUARANTEED_SAFE does not hold: the kernel's running maximum is -inf after them, and
    without its check exp2(-inf - -inf) makes the row NaN. It reads the partial blocks first, here
    in steps of 64 keys."""
    length = 2304  # two lists of boxes as LLaVA-1.5 has them
    spans = spans_of([[(636, [25] * 20), (640, [24] * 20)]], length)
    mask, seen = block_mask(spans), spans.visible()[0]
    unseen = 0
    for block in range(length // BLOCK_TOKENS):
        partial = int(mask.kv_num_blocks[0, 0, block]) > 0
        order = mask.kv_indices if partial else mask.full_kv_indices
        first = BLOCK_TOKENS * int(order[0, 0, block, 0])
        rows = seen[BLOCK_TOKENS * block : BLOCK_TOKENS * (block + 1), first : first + 64]
        unseen += int((~rows.any(1)).sum())
    assert unseen > 1000
    assert KERNEL_OPTIONS == {"IS_DIVISIBLE": True}


def test_only_whole_blocks_are_called_divisible(monkeypatch: pytest.MonkeyPatch) -> None:
    """`block_mask` refuses other lengths; other masks do not go to Flex."""
    given: list[dict[str, Any]] = []

    def recorded(*_: Any, **options: Any) -> tuple[Tensor, None]:
        given.append(options)
        return torch.zeros(1), None

    monkeypatch.setattr(attention, "flex_attention_forward", recorded)
    monkeypatch.setattr(attention, "sdpa_attention_forward", recorded)
    rows = torch.zeros(1, 1, 128, 8)
    module = torch.nn.Module()
    mask = block_mask(spans_of([[(100, [20])]], 128))
    attention.shared_prefix_attention(module, rows, rows, rows, mask)
    attention.shared_prefix_attention(module, rows, rows, rows, None)
    assert given == [{"kernel_options": KERNEL_OPTIONS}, {}]


def test_an_additive_mask_is_zero_or_the_lowest_number() -> None:
    mask = additive_mask(torch.tensor([[[True, False]]]), torch.bfloat16)
    assert mask.dtype == torch.bfloat16
    assert mask.tolist() == [[[[0.0, torch.finfo(torch.bfloat16).min]]]]


def test_segments_of_a_growing_cache_equal_the_rule() -> None:
    """Padding, two of the prefix, then a token of answer 1, one of 2, and another of 1."""
    keys = torch.tensor([[PADDING, PREFIX, PREFIX, 1, 2, 1]])
    expected = [[False, True, True, True, False, True], [False, True, True, False, True, False]]
    assert visible_segments(torch.tensor([[1, 2]]), keys).tolist() == [expected]
    whole = causal_segments(keys)[0]
    assert whole[3].tolist() == [False, True, True, True, False, False]
    assert whole[0].tolist() == [True] + [False] * 5  # padding sees itself


class TestModels:
    """FlexAttention in the text model of a tiny transformers model."""

    @pytest.fixture(scope="class", params=["llava", "qwen2_5_vl"])
    def directory(
        self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
    ) -> Path:
        return save_tiny_family(request.param, tmp_path_factory.mktemp(request.param))

    @pytest.fixture
    def vlm(self, directory: Path) -> Vlm:
        return load_vlm(resolve_model(str(directory)), dtype="float32", device="cpu")

    @pytest.fixture
    def fresh_compiler(self) -> Iterator[None]:
        """Compilations of other tests must not count here, nor those of this test elsewhere."""
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    def lists(self, vlm: Vlm, lengths: Sequence[int]) -> list[CompletionList]:
        end = vlm.eos_token_ids[0]
        return [
            CompletionList(
                encode_prompt(vlm, noise_image(b), "where is it" + "?" * b),
                [[*range(20 + n, 20 + n + length), end] for n in range(3)],
            )
            for b, length in enumerate(lengths)
        ]

    @pytest.mark.parametrize("flex", [True, False])
    def test_only_the_text_model_takes_our_attention(
        self, vlm: Vlm, flex: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[str] = []

        def recorded(module: torch.nn.Module, query: Tensor, *_: Any, **__: Any) -> Any:
            seen.append(next(n for n, m in vlm.model.named_modules() if m is module))
            return torch.zeros_like(query.transpose(1, 2)), None

        monkeypatch.setattr(attention, "shared_prefix_attention", recorded)
        assert not uses_flex_attention(vlm.model)
        use_shared_prefix_attention(vlm.model, flex=flex)
        assert uses_flex_attention(vlm.model) is flex
        windowed = vlm.model.config.model_type in TOWERS_WITH_PARTS  # SDPA, window by window
        tower = vlm.model.config.vision_config._attn_implementation
        assert tower == (WINDOWS if windowed else "sdpa")
        with torch.no_grad():
            packed_logps(vlm.model, pack_lists(vlm, self.lists(vlm, [4, 6])))
        layers = len(vlm.model.model.language_model.layers)
        assert seen == [f"model.language_model.layers.{i}.self_attn" for i in range(layers)]

    def test_each_attention_gets_the_mask_it_takes(self, vlm: Vlm) -> None:
        """Prefixes of 3 and 5 tokens: 3 positions are plain causal in both rows."""
        spans = spans_of([[(3, [60, 65])], [(5, [100])]], 128)
        whole = packed_mask(vlm.model, spans)
        assert torch.equal(whole, additive_mask(spans.visible(), torch.float32))
        use_shared_prefix_attention(vlm.model, flex=False)
        assert torch.equal(packed_mask(vlm.model, spans), whole[:, :, 3:])
        assert packed_mask(vlm.model, spans_of([[(9, [])]], 9)).shape == (1, 1, 1, 9)
        use_shared_prefix_attention(vlm.model, flex=True)
        assert isinstance(packed_mask(vlm.model, spans), BlockMask)

    @pytest.mark.parametrize("one_row", [False, True])
    def test_a_causal_prefix_by_itself_changes_nothing(self, vlm: Vlm, one_row: bool) -> None:
        lists = self.lists(vlm, [4, 6])
        with torch.no_grad():
            whole = packed_logps(vlm.model, pack_lists(vlm, lists, one_row=one_row))
            use_shared_prefix_attention(vlm.model, flex=False)
            split = packed_logps(vlm.model, pack_lists(vlm, lists, one_row=one_row))
        torch.testing.assert_close(split, whole, atol=1e-4, rtol=0)

    def test_with_answers_of_one_token_only_the_prefix_remains(self, vlm: Vlm) -> None:
        (entry,) = self.lists(vlm, [1])
        short = [CompletionList(entry.prompt, [[20], [21]])]
        with torch.no_grad():
            expected = separate_logps(vlm.model, separate_lists(vlm, short))
            use_shared_prefix_attention(vlm.model, flex=False)
            logps = packed_logps(vlm.model, pack_lists(vlm, short))
        torch.testing.assert_close(logps, expected, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("flex", [True, False])
    def test_plain_forwards_do_not_change(self, vlm: Vlm, flex: bool) -> None:
        """With a padding mask, and without a mask, which must still mean causal."""
        (entry,) = lists = self.lists(vlm, [5])
        batch = separate_lists(vlm, lists, left_padding=3)
        types = entry.prompt.token_types
        inputs = {"input_ids": entry.prompt.input_ids[None], **entry.prompt.tensors} | (
            {} if types is None else {"mm_token_type_ids": types[None]}
        )
        with torch.no_grad():
            padded, bare = separate_logps(vlm.model, batch), vlm.model(**inputs).logits
            use_shared_prefix_attention(vlm.model, flex=flex)
            torch.testing.assert_close(separate_logps(vlm.model, batch), padded)
            torch.testing.assert_close(vlm.model(**inputs).logits, bare)

    @pytest.mark.usefixtures("fresh_compiler")
    def test_another_mask_of_the_same_shape_is_not_compiled_again(self, vlm: Vlm) -> None:
        """Only Dynamo traces: it, not the backend, decides what is compiled again."""
        first, second, longer = (self.lists(vlm, lengths) for lengths in ([4, 9], [7, 5], [90, 90]))
        with torch.no_grad():
            expected = packed_logps(vlm.model, pack_lists(vlm, second))
            use_shared_prefix_attention(vlm.model, flex=True)
            for layer in vlm.model.model.language_model.layers:
                layer.compile(backend="eager")
            batches = [pack_lists(vlm, lists) for lists in (first, second, longer)]
            assert batches[0].input_ids.shape == batches[1].input_ids.shape
            counters.clear()
            packed_logps(vlm.model, batches[0])
            assert counters["stats"]["unique_graphs"] == 1  # for all layers
            assert not counters["graph_break"]
            with torch._dynamo.config.patch(error_on_recompile=True):
                logps = packed_logps(vlm.model, batches[1])
                with pytest.raises(torch._dynamo.exc.RecompileError):
                    packed_logps(vlm.model, batches[2])
        torch.testing.assert_close(logps, expected, atol=1e-4, rtol=0)
