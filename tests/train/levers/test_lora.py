"""LoRA added by the matrix kernel, and joined first products, against PEFT's own layers."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny_families import save_tiny_family
from tiny_training import assert_same, run, trainable_vlm, uneven_lists
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.train.levers.lora import LeanLora, use_lean_lora
from perpo_pipeline.train.shared_prefix import pack_lists, packed_logps
from perpo_pipeline.vlm.adapters import save_trained
from perpo_pipeline.vlm.models import Vlm, base_model

BOTH = ["lora-addmm", "joined-lora"]


@pytest.fixture(scope="module", params=["llava", "qwen2_5_vl", "qwen3_vl"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_family(request.param, tmp_path_factory.mktemp(request.param))


only_llava = pytest.mark.parametrize("directory", ["llava"], indirect=True)


class Operations(TorchDispatchMode):
    """Counts the operators that are run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("levers", "checkpointing"), [(BOTH[:1], False), (BOTH[1:], True), (BOTH, False), (BOTH, True)]
)
def test_log_probabilities_and_gradients_are_those_of_peft(
    directory: Path, levers: list[str], checkpointing: bool
) -> None:
    plain = trainable_vlm(directory)
    lean = trainable_vlm(directory, levers, gradient_checkpointing=checkpointing)
    layers = [m for m in lean.model.modules() if isinstance(m, LeanLora)]
    assert len(layers) == 7 * len(base_model(lean.model).get_decoder().layers)
    assert_same(run(lean), run(plain))
    assert all(layer.joined is None or layer.joined.x is None for layer in layers)  # let go
    with lean.model.disable_adapter(), plain.model.disable_adapter(), torch.no_grad():
        batch = pack_lists(plain, uneven_lists(plain))
        assert torch.equal(packed_logps(lean.model, batch), packed_logps(plain.model, batch))


@only_llava
def test_fewer_products_and_fewer_passes_over_memory_are_run(directory: Path) -> None:
    """Of 5 first products that read the same input, 2 are left.

    Three fewer forward and three for A's gradients; as many for x's gradients, except where the
    attention of the first layer reads the frozen embeddings (q, k, v: two products fewer).
    """

    def counts(levers: list[str]) -> Counter[str]:
        vlm = trainable_vlm(directory, levers)
        assert len(base_model(vlm.model).get_decoder().layers) == 2
        with Operations() as found:
            run(vlm)
        return found.counts

    plain, joined, added = counts([]), counts(BOTH[1:]), counts(BOTH[:1])
    assert plain["mm"] - joined["mm"] == 2 * (3 + 3 + 3) - 2
    # No product is added in a pass of its own.
    assert added["linear_plus_product"] == plain["add"] - added["add"] == 7 * 2


@only_llava
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # Dynamo looks, and hides
def test_compiled_layers_stay_one_graph_each_and_give_the_same(directory: Path) -> None:
    plain, lean = trainable_vlm(directory), trainable_vlm(directory, BOTH)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    layers = base_model(lean.model).get_decoder().layers
    for layer in layers:
        layer.compile(backend=counter, dynamic=False, fullgraph=True)
    assert_same(run(lean), run(plain))
    assert 0 < counter.frame_count <= len(layers)
    torch._dynamo.reset()


@only_llava
def test_the_saved_adapter_is_the_one_of_peft(directory: Path, tmp_path: Path) -> None:
    """Same names and values; merged weights come from PEFT's own code."""
    plain, lean = trainable_vlm(directory), trainable_vlm(directory, BOTH)
    save_trained(plain.model, tmp_path / "plain", {})
    save_trained(lean.model, tmp_path / "lean", {})
    found, expected = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("lean", "plain")
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    configs = [(tmp_path / n / "adapter_config.json").read_text() for n in ("lean", "plain")]
    assert configs[0] == configs[1]
    batch = pack_lists(plain, uneven_lists(plain))
    with torch.no_grad():
        unmerged = packed_logps(lean.model, batch)
        lean.model.merge_adapter()
        torch.testing.assert_close(packed_logps(lean.model, batch), unmerged, atol=1e-4, rtol=0)


@only_llava
def test_in_bf16_the_rounding_is_not_larger_than_that_of_peft(directory: Path) -> None:
    exact = run(trainable_vlm(directory))[1]
    errors = {}
    for name, levers in (("plain", []), ("lean", BOTH)):
        found = run(trainable_vlm(directory, levers, dtype="bfloat16"))[1]
        errors[name] = sum(float((found[n] - exact[n]).norm() / exact[n].norm()) for n in exact)
    assert 0 < errors["lean"] < 1.1 * errors["plain"]


@pytest.fixture(params=["nf4", "int8"])
def quantised(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A linear layer of bitsandbytes, on the CPU."""
    torch.manual_seed(0)
    plain = torch.nn.Linear(64, 32, bias=False)
    if request.param == "nf4":
        layer = bnb.nn.Linear4bit(64, 32, bias=False, quant_type="nf4")
    else:
        layer = bnb.nn.Linear8bitLt(64, 32, bias=False, has_fp16_weights=False)
    layer.load_state_dict(plain.state_dict(), strict=False)
    yield layer.to("cpu")


def test_a_quantised_base_layer_keeps_its_own_output(quantised: Any) -> None:
    model = torch.nn.Sequential(quantised)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["0"], init_lora_weights=False)
    peft: Any = get_peft_model(model, config, autocast_adapter_dtype=False)
    x = torch.randn(3, 5, 64, requires_grad=True)
    trained = [p for p in peft.parameters() if p.requires_grad]

    def outcome() -> list[torch.Tensor]:
        out = peft(x)
        return [out, *torch.autograd.grad((out**2).sum(), [x, *trained])]

    plain = outcome()
    use_lean_lora(peft, ["lora-addmm"])
    assert isinstance(peft.base_model.model[0], LeanLora)
    for ours, expected in zip(outcome(), plain, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)


@only_llava
@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"lora_dropout": 0.1}, "has dropout"),
        ({"use_dora": True}, "has a variant of LoRA"),
        ({"lora_bias": True}, "or a bias"),
    ],
)
def test_other_kinds_of_lora_are_refused(
    directory: Path, changes: dict[str, Any], why: str
) -> None:
    vlm: Vlm = trainable_vlm(directory, tuning="full")
    config = LoraConfig(target_modules=r".*language_model.*gate_proj", **changes)
    model = get_peft_model(vlm.model, config)
    with pytest.raises(ConfigError, match=why) as caught:
        use_lean_lora(model, ["lora-addmm"])
    assert caught.value.fix == "remove lora-addmm and joined-lora from train.levers"


@only_llava
def test_several_adapters_are_refused(directory: Path) -> None:
    vlm = trainable_vlm(directory)
    peft: Any = vlm.model
    peft.add_adapter("second", peft.peft_config["default"])
    with pytest.raises(ConfigError, match=r"has the adapters \['default', 'second'\]"):
        use_lean_lora(peft, ["joined-lora"])
