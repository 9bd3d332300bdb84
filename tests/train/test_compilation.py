"""How many graphs the decoder layers are compiled into, and that they compute the same."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from graph_counting import GraphCounter, text_list
from tiny_families import save_tiny_family
from tiny_models import noise_image
from tiny_training import add_adapter, assert_same, with_gradients
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention
from torch.nn.parallel import DistributedDataParallel

from perpo_pipeline.config.train import LoraSettings, TrainSettings
from perpo_pipeline.train import engine
from perpo_pipeline.train.compilation import compile_layers
from perpo_pipeline.train.engine import ListPolicy, ready_model
from perpo_pipeline.train.separate_rows import separate_lists, separate_logps
from perpo_pipeline.train.shared_prefix import (
    CompletionList,
    RowLengths,
    pack_lists,
    packed_logps,
)
from perpo_pipeline.train.token_budget import group_by_tokens
from perpo_pipeline.vlm.attention import use_shared_prefix_attention
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.models import Vlm
from perpo_pipeline.vlm.prompts import encode_prompt

# Dynamo looks at it, and hides the warning.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")

# Tokens of prompts with an image: of one size, or of a native resolution or tiles.
PROMPTS = {
    "llava": [610, 640, 650, 620, 900, 700],
    "llava_next": [1150, 1800, 2300, 2900, 1500, 2100],
    "llava_onevision": [1600, 3000, 7000, 4500, 5200, 2400],
    "qwen2_5_vl": [300, 450, 1100, 260, 800, 520],
    "qwen3_vl": [220, 350, 900, 180, 640, 1500],
}
AXES = {"qwen2_5_vl": 3, "qwen3_vl": 3}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Graphs and limits of one test must not reach another."""
    with torch._dynamo.config.patch(recompile_limit=8):
        torch._dynamo.reset()
        counters.clear()
        yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: save_tiny_family(name, root / name) for name in PROMPTS}


def load(directory: Path) -> Vlm:
    return load_vlm(resolve_model(str(directory)), dtype="float32", device="cpu")


def load_flex(directory: Path, row_lengths: RowLengths, backend: Any) -> Vlm:
    """As on CUDA: Flex, and compiled layers."""
    vlm = load(directory)
    use_shared_prefix_attention(vlm.model, flex=True)
    compile_layers(vlm.model, row_lengths, backend=backend)
    return vlm


def add_lora(vlm: Vlm) -> Vlm:
    return add_adapter(vlm, TrainSettings(lora=LoraSettings(rank=4, alpha=8)))


def run_reference_and_policy(
    vlm: Vlm, family: str, counter: GraphCounter, row_lengths: RowLengths
) -> set[int]:
    """Forwards of both over lists of a family; returns the lengths of their rows."""
    axes = AXES.get(family, 1)
    lists = [
        text_list(n, [5 + (i + j) % 30 for j in range(4 + i % 5)], axes=axes)
        for i, n in enumerate(PROMPTS[family])
    ]
    rows = [(entry.num_packed_tokens,) for entry in lists]
    groups = [[0], [1], *group_by_tokens(rows, 3000, in_one_row=True)]
    batches = [pack_lists(vlm, [lists[i] for i in g], row_lengths=row_lengths) for g in groups]
    vlm.model.eval()
    for batch in batches:
        with torch.no_grad():
            packed_logps(vlm.model, batch)
    assert counter.graphs > 0
    add_lora(vlm)
    for batch in batches:
        packed_logps(vlm.model, batch).sum().backward()
    return {batch.input_ids.shape[1] for batch in batches}


@pytest.mark.parametrize("family", PROMPTS)
def test_rows_of_any_length_take_two_graphs(
    directories: dict[str, Path], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference's and the policy's."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    counter = GraphCounter(width=64)
    vlm = load_flex(directories[family], "any", counter)
    lengths = run_reference_and_policy(vlm, family, counter, "any")
    assert len(lengths) >= 4 and all(length % 128 == 0 for length in lengths)
    assert counter.graphs == 2
    assert not counters["graph_break"]


def test_recurrent_layers_are_compiled_once(tiny_qwen3_5: Path) -> None:
    """All of a kind into the same graphs: more layers take no more of them."""
    counter = CompileCounter()
    vlm = load(tiny_qwen3_5)
    kinds = vlm.model.config.text_config.layer_types
    assert kinds.count("linear_attention") == 3 and kinds.count("full_attention") == 1
    ready_model(vlm, "shared-prefix", TrainSettings())
    compile_layers(vlm.model, "any", backend=counter)
    add_lora(vlm)
    batch = pack_lists(vlm, [text_list(40, [5, 7], axes=3)])
    packed_logps(vlm.model, batch).sum().backward()
    # Before and after the net, and the layer of full attention.
    assert counter.frame_count == 3


def test_bucketed_rows_take_a_graph_for_each_length_in_every_thread(
    directories: dict[str, Path],
) -> None:
    """More than the 8 that torch allows by itself. Gradient checkpointing runs layers in the
    backward's thread, which does not see Dynamo's settings of the main thread."""
    counter = GraphCounter(width=64)
    vlm = load_flex(directories["llava"], "bucketed", counter)

    @torch.no_grad()
    def work() -> None:
        for blocks in range(2, 11):
            packed_logps(vlm.model, pack_lists(vlm, [text_list(128 * blocks, [3])]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert counter.graphs == 9


def test_separate_rows_are_not_compiled(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have another length at each step; before, each step compiled its own graph."""
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: pytest.fail("compiled"))
    vlm = load(directories["llava"])
    for choice in (None, True):
        ready_model(vlm, "separate", TrainSettings(compile=choice))
        for length in (4, 7, 9):
            separate_logps(vlm.model, separate_lists(vlm, [text_list(20, [3, length])]))
    assert counters["stats"]["unique_graphs"] == 0


def test_ddp_does_not_split_the_graphs(
    directories: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dynamo splits them where a bucket of gradients ends, and the first here is one matrix."""
    monkeypatch.setattr(dist, "_DEFAULT_FIRST_BUCKET_BYTES", 64)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        graphs = []
        for split in (True, False):
            with monkeypatch.context() as patch:
                if split:
                    patch.setattr(engine, "whole_graphs", lambda: torch.enable_grad())
                torch._dynamo.reset()
                counter = CompileCounter()
                vlm = load(directories["llava"])
                use_shared_prefix_attention(vlm.model, flex=False)
                compile_layers(vlm.model, "any", backend=counter)
                policy = DistributedDataParallel(ListPolicy(add_lora(vlm).model), bucket_cap_mb=1)
                policy(pack_lists(vlm, [text_list(20, [3, 5])])).sum().backward()
                graphs.append(counter.frame_count)
    finally:
        dist.destroy_process_group()
    assert graphs[0] > graphs[1] == 1


def image_lists(vlm: Vlm, lengths: list[list[int]]) -> list[CompletionList]:
    end = vlm.eos_token_ids[0]
    return [
        CompletionList(
            encode_prompt(vlm, noise_image(i), "where is it" + "?" * i),
            [[*range(20 + n, 20 + n + length), end] for n, length in enumerate(some)],
        )
        for i, some in enumerate(lengths)
    ]


@pytest.mark.parametrize(("family", "checkpointing"), [("llava", True), ("qwen3_vl", False)])
def test_any_and_bucketed_lengths_give_what_separate_rows_give(
    directories: dict[str, Path],
    family: str,
    checkpointing: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Values and gradients of rows of two lengths one after the other, which share their graphs in
    the case of `any`: Flex with a dense backward, layers as Dynamo compiles them. The first layer's
    input has a gradient, too, so that all layers have the same graph."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    shapes = [[[60, 50, 41]], [[60, 70, 90], [30, 9]]]
    found: dict[str, list[Any]] = {"any": [], "bucketed": [], "separate": []}
    for way, results in found.items():
        vlm = load(directories[family])
        lengths: Any = way
        if way != "separate":
            vlm = load_flex(directories[family], lengths, "eager")
        add_lora(vlm)
        if checkpointing:
            vlm.model.gradient_checkpointing_enable({"use_reentrant": False})
        counters.clear()
        for shape in shapes:
            lists = image_lists(vlm, shape)
            if way == "separate":
                logps = separate_logps(vlm.model, separate_lists(vlm, lists))
            else:
                logps = packed_logps(vlm.model, pack_lists(vlm, lists, row_lengths=lengths))
            results.append(with_gradients(vlm, logps))
        graphs = {"any": 1, "bucketed": 2, "separate": 0}
        assert counters["stats"]["unique_graphs"] == graphs[way]
    for any_, bucketed, separate in zip(*found.values(), strict=True):
        assert_same(any_, bucketed)
        assert_same(any_, separate)


@pytest.mark.slow  # torch compiles a layer for the CPU, which needs g++
def test_flex_in_layers_that_inductor_compiles_gives_what_separate_rows_give(
    directories: dict[str, Path],
) -> None:
    """As a reference on CUDA, but of one length: torch 2.13 writes C++ with undefined names for
    Flex with dynamic lengths, so its Triton kernels are compiled by `make check-cuda` alone."""
    plain, compiled = load(directories["llava"]), load(directories["llava"])
    use_shared_prefix_attention(compiled.model, flex=True)
    compile_layers(compiled.model, "bucketed")
    lists = image_lists(plain, [[60, 50, 41], [9]])
    with torch.no_grad():
        logps = packed_logps(compiled.model, pack_lists(compiled, lists))
        expected = separate_logps(plain.model, separate_lists(plain, lists))
    torch.testing.assert_close(logps, expected, atol=1e-4, rtol=0)
    assert counters["stats"]["unique_graphs"] == 1
