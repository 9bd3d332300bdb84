"""Which forward is chosen, how a model is prepared for it, and what the reference pass returns."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import save_tiny_family
from tiny_models import noise_image
from tiny_training import add_adapter, assert_same, with_gradients
from torch._dynamo.utils import counters

from perpo_pipeline.config.train import LoraSettings, TrainSettings
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.train.batches import TrainingBatch
from perpo_pipeline.train.engine import (
    ListPolicy,
    choose_forward,
    memory_explained,
    ready_model,
    reference_logps,
)
from perpo_pipeline.train.separate_rows import separate_lists
from perpo_pipeline.train.shared_prefix import CompletionList, pack_lists, packed_logps
from perpo_pipeline.vlm.attention import SPLIT, uses_flex_attention
from perpo_pipeline.vlm.families import Family
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.layers import LayerKinds
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.models import Vlm, Way
from perpo_pipeline.vlm.prompts import encode_prompt


@pytest.fixture(scope="module", params=["llava", "qwen3_vl"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_family(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def vlm(directory: Path) -> Vlm:
    return load(directory)


@pytest.fixture
def lora_vlm(directory: Path) -> Vlm:
    """With an adapter that changes the model, in training mode."""
    return add_adapter(load(directory), TrainSettings(lora=LoraSettings(rank=4, alpha=8)))


def load(directory: Path) -> Vlm:
    return load_vlm(resolve_model(str(directory)), dtype="float32", device="cpu")


def uneven_lists(vlm: Vlm) -> list[CompletionList]:
    end = vlm.eos_token_ids[0]
    completions = [
        [[11, 12, 13, end], [21, end], [31, 32, 33, 34, end]],
        [[41, end]],
        [[51, 52, end], [end]],
    ]
    return [
        CompletionList(encode_prompt(vlm, noise_image(i), "where" + "?" * i), some)
        for i, some in enumerate(completions)
    ]


@pytest.mark.parametrize(
    ("wanted", "known", "exact", "chosen"),
    [
        ("auto", True, None, "shared-prefix"),
        ("auto", False, True, "shared-prefix"),
        ("auto", False, False, "separate"),
        ("shared-prefix", False, False, "shared-prefix"),
        ("separate", True, None, "separate"),
        ("separate", False, True, "separate"),
    ],
)
def test_the_forward_is_shared_if_tested_or_proven_or_asked_for(
    vlm: Vlm, wanted: str, known: bool, exact: bool | None, chosen: str
) -> None:
    """A known family is not proven again."""

    def prove(_: Vlm) -> Way:
        assert exact is not None
        return Way(exact, "found out")

    model = replace(vlm, family=Family("some", known=known), prove=prove)
    assert choose_forward(model, wanted) == chosen
    assert model.shares_prefix is (known or exact)
    assert (model.way.why == "found out") is not known


@pytest.mark.parametrize("known", [True, False])
def test_layers_that_no_mask_describes_are_never_packed(vlm: Vlm, known: bool) -> None:
    state = LayerKinds({}, ("mamba",), "some of its layers carry a state (mamba)")
    model = replace(vlm, family=Family("some", known=known))
    vars(model)["layers"] = state
    assert choose_forward(model, "auto") == choose_forward(model, "separate") == "separate"
    with pytest.raises(ConfigError, match=r"would change .* carry a state \(mamba\)") as caught:
        choose_forward(model, "shared-prefix")
    assert caught.value.fix == "use train.forward: separate"


def batches_of(vlm: Vlm, forward: str) -> list[TrainingBatch]:
    """The first two lists together, then the third."""
    lists = uneven_lists(vlm)
    batches = []
    for ids in ([0, 1], [2]):
        some = [lists[i] for i in ids]
        packed = (pack_lists if forward == "shared-prefix" else separate_lists)(vlm, some)
        numbers = torch.zeros(packed.num_tokens.shape)
        names = [f"prompt {i}" for i in ids]
        batches.append(TrainingBatch(names, names, packed, *[numbers] * 3))
    return batches


@pytest.mark.parametrize("forward", ["shared-prefix", "separate"])
def test_the_reference_is_the_models_log_probabilities_by_prompt(
    lora_vlm: Vlm, forward: str
) -> None:
    """With the adapter, and without the zeros that pad shorter lists."""
    lists = uneven_lists(lora_vlm)
    reference = reference_logps(lora_vlm.model, batches_of(lora_vlm, forward))
    assert list(reference) == ["prompt 0", "prompt 1", "prompt 2"]
    assert lora_vlm.model.training
    with torch.no_grad():
        expected = packed_logps(lora_vlm.model, pack_lists(lora_vlm, lists))
        with lora_vlm.model.disable_adapter():
            base = packed_logps(lora_vlm.model, pack_lists(lora_vlm, lists))
    for entry, row, without, logps in zip(lists, expected, base, reference.values(), strict=True):
        count = len(entry.completions)
        assert logps == pytest.approx(row[:count].tolist(), abs=1e-4)
        assert (torch.tensor(logps) - without[:count]).abs().max() > 1e-3


def test_the_policy_module_runs_either_forward(lora_vlm: Vlm) -> None:
    policy, lists = ListPolicy(lora_vlm.model), uneven_lists(lora_vlm)
    packed = policy(pack_lists(lora_vlm, lists))
    plain = policy(separate_lists(lora_vlm, lists))
    assert packed.shape == plain.shape == (3, 3)
    torch.testing.assert_close(packed, plain, atol=1e-4, rtol=0)
    packed.sum().backward()
    trained = [p for p in policy.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None for p in trained)


def test_batch_norms_keep_their_statistics_in_training(lora_vlm: Vlm) -> None:
    """FastVLM's frozen tower has them: an answer must not depend on the lists beside it."""
    core = lora_vlm.model.get_base_model().model
    norm = torch.nn.BatchNorm1d(lora_vlm.model.config.get_text_config().hidden_size)
    norm.running_mean.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(0))
    before = norm.running_mean.clone()
    core.in_the_way = norm
    hook = core.get_decoder().embed_tokens.register_forward_hook(
        lambda module, args, output: norm(output.flatten(0, -2)).view_as(output)
    )
    policy = ListPolicy(lora_vlm.model).train()
    lists = uneven_lists(lora_vlm)
    with torch.no_grad():
        together = policy(separate_lists(lora_vlm, lists))
        alone = policy(separate_lists(lora_vlm, lists[:1]))
    hook.remove()
    del core.in_the_way
    assert lora_vlm.model.training and torch.equal(norm.running_mean, before)
    torch.testing.assert_close(together[:1, : alone.shape[1]], alone, atol=1e-4, rtol=0)


def test_gradient_checkpointing_gives_the_same_gradients(lora_vlm: Vlm) -> None:
    """Decoder layers run twice, the frozen vision tower's blocks once."""
    ready_model(lora_vlm, "shared-prefix", TrainSettings())
    batch = pack_lists(lora_vlm, uneven_lists(lora_vlm))
    usual = packed_logps(lora_vlm.model, batch)
    expected = with_gradients(lora_vlm, usual)
    core = lora_vlm.model.get_base_model().model
    tower = core.visual.blocks[0] if hasattr(core, "visual") else core.vision_tower
    runs: list[str] = []
    for name, module in (("decoder", core.language_model.layers[0].mlp), ("tower", tower)):
        module.register_forward_pre_hook(lambda module, args, name=name: runs.append(name))
    lora_vlm.model.gradient_checkpointing_enable({"use_reentrant": False})
    lora_vlm.model.train()
    logps = packed_logps(lora_vlm.model, batch)
    torch.testing.assert_close(logps, usual)
    assert_same(with_gradients(lora_vlm, logps), expected)
    assert sorted(runs) == ["decoder", "decoder", "tower"]


class TestReady:
    @pytest.fixture(autouse=True)
    def fresh_compiler(self) -> Iterator[None]:
        """Compiled code and limits of one test must not reach another."""
        with torch._dynamo.config.patch(recompile_limit=8):
            torch._dynamo.reset()
            yield
        torch._dynamo.reset()

    def compiled(self, vlm: Vlm) -> list[bool]:
        layers = vlm.model.model.language_model.layers
        return [layer._compiled_call_impl is not None for layer in layers]

    @pytest.mark.parametrize("choice", [None, False])
    def test_on_a_cpu_nothing_is_compiled_unless_asked(
        self, directory: Path, choice: bool | None
    ) -> None:
        vlm = load(directory)
        ready_model(vlm, "separate", TrainSettings(compile=choice))
        assert vlm.model.config.get_text_config()._attn_implementation == "sdpa"
        ready_model(vlm, "shared-prefix", TrainSettings(compile=choice))
        assert vlm.model.config.get_text_config()._attn_implementation == SPLIT
        assert not any(self.compiled(vlm))

    @pytest.mark.parametrize("forward", ["shared-prefix", "separate"])
    def test_on_cuda_a_shared_prefix_takes_flex_attention_and_compiled_layers(
        self, directory: Path, forward: Any
    ) -> None:
        vlm = replace(load(directory), device=torch.device("cuda"))  # only asked for its kind
        ready_model(vlm, forward, TrainSettings())
        assert uses_flex_attention(vlm.model) is (forward == "shared-prefix")
        assert set(self.compiled(vlm)) == {forward == "shared-prefix"}
        uncompiled = replace(load(directory), device=torch.device("cuda"))
        ready_model(uncompiled, forward, TrainSettings(compile=False))
        assert not any(self.compiled(uncompiled))

    @pytest.mark.parametrize(("compile_", "compiled"), [(None, False), (True, True)])
    def test_quantised_layers_are_compiled_on_request_only(
        self, directory: Path, compile_: bool | None, compiled: bool
    ) -> None:
        vlm = replace(load(directory), device=torch.device("cuda"), quantization="nf4")
        ready_model(vlm, "shared-prefix", TrainSettings(compile=compile_))
        assert set(self.compiled(vlm)) == {compiled}

    @pytest.mark.slow  # torch compiles forward and backward for the CPU, which needs g++
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # Dynamo looks, and hides
    @pytest.mark.parametrize("directory", ["llava"], indirect=True)
    def test_compiled_layers_give_the_same(self, lora_vlm: Vlm) -> None:
        """All in one graph: the first layer's input has a gradient, as that of the others has."""
        lora_vlm.model.enable_input_require_grads()
        batch = pack_lists(lora_vlm, uneven_lists(lora_vlm))
        usual = packed_logps(lora_vlm.model, batch)
        expected = with_gradients(lora_vlm, usual)
        ready_model(lora_vlm, "shared-prefix", TrainSettings(compile=True))
        counters.clear()
        logps = packed_logps(lora_vlm.model, batch)
        assert counters["stats"]["unique_graphs"] == 1
        torch.testing.assert_close(logps, usual, atol=1e-4, rtol=0)
        assert_same(with_gradients(lora_vlm, logps), expected)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_that_runs_out_names_the_settings_to_change(checkpointing: bool) -> None:
    settings = TrainSettings(max_tokens_per_forward=1234, gradient_checkpointing=checkpointing)
    with pytest.raises(ConfigError) as caught, memory_explained(settings, backward=True):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nsecond line")
    assert "CUDA out of memory. Tried to allocate 2 GiB" in str(caught.value)
    assert "second line" not in str(caught.value)
    fix = str(caught.value.fix)
    assert "train.max_tokens_per_forward (now 1234)" in fix
    assert ("train.gradient_checkpointing: true" in fix) is not checkpointing
    assert ("train.activation_offload: true" in fix) is checkpointing
    assert "`perpo plan` names settings that fit" in fix
    assert "resumes from the last checkpoint" in fix


def test_without_a_backward_pass_no_advice_is_about_one() -> None:
    """The reference and the self-check keep no activations and have no checkpoints."""
    with pytest.raises(ConfigError) as caught, memory_explained(TrainSettings()):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    fix = str(caught.value.fix)
    assert "train.max_tokens_per_forward" in fix and "checkpoint" not in fix


def test_memory_that_runs_out_on_one_list_asks_for_shorter_lists() -> None:
    """A lower budget would not help: a list is never split."""
    settings = TrainSettings(gradient_checkpointing=True)
    with pytest.raises(ConfigError) as caught, memory_explained(settings, num_lists=1):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    fix = str(caught.value.fix)
    assert "sample.num_samples" in fix and "max_tokens_per_forward" not in fix
    assert "model.max_pixels" in fix


def test_a_kernel_that_does_not_fit_the_card_is_one_error_with_what_to_do() -> None:
    """Flex in float32 on a card of 24 GB, in the words of torch 2.11 to 2.14 and their Triton."""
    with pytest.raises(ConfigError) as caught, memory_explained(TrainSettings()):
        raise RuntimeError(
            "No valid triton configs. OutOfResources: out of resource: shared memory, Required: "
            "147968, Hardware limit: 101376. Reducing block sizes or `num_stages` may help."
        )
    assert "Required: 147968, Hardware limit: 101376" in str(caught.value)
    assert "model.dtype: bfloat16" in str(caught.value.fix)
    assert "train.forward: separate" in str(caught.value.fix)


def test_other_errors_are_not_changed() -> None:
    with pytest.raises(RuntimeError, match="something else"), memory_explained(TrainSettings()):
        raise RuntimeError("something else")
