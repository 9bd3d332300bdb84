"""The levers that change the model: last layer, head, vision tower, and all of them together."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import MODEL_TYPES, save_tiny_family
from tiny_training import assert_same, run, trainable_vlm
from torch._dynamo.testing import CompileCounterWithBackend

from perpo_pipeline.config.levers import LEVERS
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.train import shared_prefix
from perpo_pipeline.train.compilation import compile_layers
from perpo_pipeline.train.layout import PackedList
from perpo_pipeline.train.levers import whole_head
from perpo_pipeline.train.levers.last_layer import predicting_places, use_last_layer
from perpo_pipeline.train.levers.model import AUTOTUNE, use_model_levers
from perpo_pipeline.train.levers.tower import compile_tower, tower_blocks
from perpo_pipeline.vlm.layers import LayerKinds, Reach
from perpo_pipeline.vlm.models import base_model

TOGETHER = ["flash-parts", "lora-addmm", "whole-head", "last-layer", "joined-lora"]


@pytest.fixture(scope="module", params=MODEL_TYPES)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_family(request.param, tmp_path_factory.mktemp(request.param))


only = pytest.mark.parametrize
only_llava = only("directory", ["llava"], indirect=True)


def test_places_that_predict_are_the_prefixes_ends_and_the_answers() -> None:
    lists = [PackedList(20, 4, (2,)), PackedList(0, 5, (3, 0, 1))]
    assert predicting_places(lists, "cpu").tolist() == [4, 5, 6, 7, 8, 23, 24, 25]


def test_the_last_layer_feeds_forward_only_what_predicts(directory: Path) -> None:
    """With the same results in all families, in rows of their own and in one row."""
    expected = run(trainable_vlm(directory))
    vlm = trainable_vlm(directory, ["last-layer"])
    rows: list[int] = []
    for layer in base_model(vlm.model).get_decoder().layers[-2:]:
        layer.mlp.register_forward_hook(lambda module, args, out: rows.append(out[..., 0].numel()))
    assert_same(run(vlm), expected)
    assert_same(run(vlm, one_row=True), expected)
    predicting = 3 + sum(n - 1 for row in ([5, 9, 2, 7], [1, 12], [4, 4, 3]) for n in row)
    assert rows[1] == rows[3] == predicting < min(rows[0], rows[2])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # Dynamo looks, and hides
def test_all_levers_together_with_checkpointed_and_with_compiled_layers(directory: Path) -> None:
    expected = run(trainable_vlm(directory))
    assert_same(run(trainable_vlm(directory, TOGETHER, gradient_checkpointing=True)), expected)
    if directory.name.startswith("llava0"):
        vlm = trainable_vlm(directory, TOGETHER)
        torch._dynamo.reset()
        compile_layers(base_model(vlm.model), "any", backend="aot_eager")
        assert_same(run(vlm), expected)
        torch._dynamo.reset()


@only_llava
def test_the_whole_head_is_one_chunk_where_memory_allows(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head of 300 words: 4,800 bytes for each position, of half of the free memory."""
    plain = trainable_vlm(directory)
    monkeypatch.setattr(shared_prefix, "LOGIT_BUDGET", 300 * 4)
    chunks: list[int] = []
    one_chunk = shared_prefix._chunk_logps

    def counted(head: Any, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        chunks.append(len(hidden))
        return one_chunk(head, hidden, targets)

    monkeypatch.setattr(shared_prefix, "_chunk_logps", counted)
    expected = run(plain)
    assert len(chunks) > 10 and max(chunks) <= 4
    chunks.clear()
    vlm = trainable_vlm(directory, ["whole-head"])
    words = base_model(vlm.model).lm_head.out_features
    per_position = whole_head.BYTES_PER_LOGIT * words
    monkeypatch.setattr(whole_head, "free_bytes", lambda device: 2 * 100 * per_position)
    assert_same(run(vlm), expected)
    assert len(chunks) == 1  # and so none is computed again
    chunks.clear()
    monkeypatch.setattr(whole_head, "free_bytes", lambda device: 2 * 30 * per_position)
    assert_same(run(vlm), expected)
    assert len(chunks) > 1 and 4 < max(chunks) <= 30
    monkeypatch.undo()
    assert whole_head.free_bytes(torch.device("cpu")) == 0


@only("directory", ["llava", "llava_next"], indirect=True)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # Dynamo looks, and hides
def test_a_compiled_tower_is_one_graph_for_all_its_blocks_and_any_number_of_tiles(
    directory: Path,
) -> None:
    plain, vlm = trainable_vlm(directory), trainable_vlm(directory)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compile_tower(vlm, backend=counter)
    assert len(list(tower_blocks(base_model(vlm.model)))) >= 2
    assert_same(run(vlm), run(plain))
    seen = counter.frame_count
    assert_same(run(vlm, 2), run(plain, 2))
    assert 0 < seen == counter.frame_count
    torch._dynamo.reset()


@only("directory", ["qwen2_5_vl"], indirect=True)
def test_a_tower_for_images_of_any_size_is_not_compiled(directory: Path) -> None:
    with pytest.raises(ConfigError, match="whose tower sees images of one size") as caught:
        trainable_vlm(directory, ["compiled-tower"])
    assert caught.value.fix == "remove compiled-tower from train.levers"


@only_llava
def test_a_lever_that_this_model_rules_out_is_one_error(directory: Path) -> None:
    vlm = trainable_vlm(directory)
    with pytest.raises(ConfigError, match="which needs a shared prefix; this 'llava' model"):
        use_model_levers(vlm, "separate", ["last-layer"])
    on_cuda = replace(vlm, device=torch.device("cuda"))  # only asked for its kind
    with pytest.raises(ConfigError, match=r"flash-parts, which needs model\.dtype: bfloat16"):
        use_model_levers(on_cuda, "shared-prefix", ["flash-parts"])
    windowed = replace(vlm)
    vars(windowed)["layers"] = LayerKinds({"sliding_attention": Reach(window=8)})
    with pytest.raises(ConfigError, match=r"plain attention only; this model has sliding_atten"):
        use_model_levers(windowed, "shared-prefix", ["flash-parts"])
    inner = base_model(vlm.model)
    inner.get_decoder().layers[-1].pre_feedforward_layernorm = torch.nn.Identity()
    with pytest.raises(ConfigError, match=r"of another kind \(pre_feedforward_layernorm"):
        use_last_layer(inner)


@only_llava
def test_flex_autotune_gives_inductor_options_that_it_has(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it is worth needs a GPU; here: options that exist, given to each layer's compilation."""
    from torch._inductor import config

    assert all(hasattr(config, name) for name in AUTOTUNE)
    given: list[Any] = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **kwargs: given.append(kwargs["options"])
    )
    vlm = trainable_vlm(directory, ["flex-autotune"], compile=True)
    assert given == [AUTOTUNE] * len(base_model(vlm.model).get_decoder().layers)
    assert set(LEVERS) == {*TOGETHER, "flex-autotune", "compiled-tower"}
