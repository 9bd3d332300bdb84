"""Whether completions may share a prompt is proven on the model's own weights, or refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import noise_image
from tiny_recurrent import save_tiny_qwen3_5
from tiny_untried import NARROW, save_untried

from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.vlm import attention, decoding, ways
from perpo_pipeline.vlm.decoding import sample_lists
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_vlm, load_without_weights
from perpo_pipeline.vlm.models import Vlm, Way
from perpo_pipeline.vlm.plain_decoding import force_list
from perpo_pipeline.vlm.prompts import encode_prompt
from perpo_pipeline.vlm.recurrent import LayerStates
from perpo_pipeline.vlm.recurrent_decoding import GrowingStates

NAMES = ("gemma3", "gemma2", "qwen2_vl-window")


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory, tiny_gemma3: Path) -> dict[str, Path]:
    others = {name: save_untried(name, tmp_path_factory.mktemp(name)) for name in NAMES[1:]}
    return {"gemma3": tiny_gemma3, **others}


def load(directory: Path, dtype: str = "float32") -> Vlm:
    return load_vlm(resolve_model(str(directory)), dtype=dtype, device="cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_healthy_models_share(directories: dict[str, Path], name: str, dtype: str) -> None:
    vlm = load(directories[name], dtype)
    assert vlm.shares_prefix
    assert vlm.way.why.startswith("it is exact on this model's own weights: shared prefix against")
    assert {"gemma3": "sdpa", "gemma2": attention.SPLIT, "qwen2_vl-window": "sdpa"}[name] == (
        vlm.model.config.get_text_config()._attn_implementation
    )


def test_nothing_of_the_proof_is_an_inference_tensor(directories: dict[str, Path]) -> None:
    vlm = load(directories["gemma3"])
    seen: list[bool] = []
    vlm.model.model.language_model.register_forward_hook(
        lambda module, args, output: seen.append(output.last_hidden_state.is_inference())
    )
    assert vlm.shares_prefix
    assert len(seen) > 6 and not any(seen)


def test_it_is_proven_once_and_only_when_asked_for(directories: dict[str, Path]) -> None:
    asked: list[Vlm] = []

    def prove(vlm: Vlm) -> Way:
        asked.append(vlm)
        return Way(True, "counted")

    vlm = replace(load(directories["gemma3"]), prove=prove)
    assert asked == []
    assert [vlm.shares_prefix, vlm.shares_prefix, vlm.way.why] == [True, True, "counted"]
    assert asked == [vlm]


def test_without_weights_the_layers_decide(directories: dict[str, Path]) -> None:
    vlm = load_without_weights(resolve_model(str(directories["gemma3"])))
    assert vlm.shares_prefix
    assert vlm.way.why == (
        f"its layers allow it: sliding_attention (the last {NARROW} tokens, images both ways) and "
        "full_attention (images both ways)"
    )


def test_one_prompt_is_longer_than_the_window_and_both_are_always_the_same(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = load(directories["gemma3"])
    for wide, longest in ((60, ways.LONGEST_PROMPT), (100_000, 80)):
        vlm.layers.reaches["sliding_attention"] = replace(
            vlm.layers.reaches["sliding_attention"], window=wide
        )
        monkeypatch.setattr(ways, "LONGEST_PROMPT", longest)
        first, second = ways.made_up_prompts(vlm)
        assert min(wide, longest) - 5 < second.num_tokens < longest + 40
        assert first.num_tokens < 50  # so that the proof costs one long prompt, not two
        again = ways.made_up_prompts(vlm)
        assert torch.equal(again[0].input_ids, first.input_ids)


def windows_count_row_places(monkeypatch: pytest.MonkeyPatch) -> None:
    original = decoding.segment_masks

    def by_place(kinds: Any, queries: Any, keys: Any, *others: Any) -> Any:
        places = torch.arange(keys.index.shape[1]).expand_as(keys.index)
        new = places[:, -queries.index.shape[1] :]
        return original(kinds, replace(queries, index=new), replace(keys, index=places), *others)

    monkeypatch.setattr(decoding, "segment_masks", by_place)


def positions_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    original = decoding._Batch.__init__

    def shifted(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        self.next_position = self.next_position + 3

    monkeypatch.setattr(decoding._Batch, "__init__", shifted)


def images_look_back_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "ends_of_blocks", lambda types, _: torch.zeros_like(types))


def softcap_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "attention_by_formula", attention.sdpa_attention_forward)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("gemma3", windows_count_row_places),
        ("gemma3", positions_go_on),
        ("gemma3", images_look_back_only),
        ("gemma2", windows_count_row_places),
        ("gemma2", softcap_is_left_out),
        ("qwen2_vl-window", windows_count_row_places),
        ("qwen2_vl-window", positions_go_on),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_fault_is_refused_with_the_figures(
    directories: dict[str, Path],
    name: str,
    dtype: str,
    fault: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vlm = load(directories[name], dtype)
    fault(monkeypatch)
    assert not vlm.shares_prefix
    assert vlm.way.why.startswith("it is not exact on this model: shared prefix against")


def test_a_forward_that_refuses_our_masks_is_named_and_sampled_plainly(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = load(directories["gemma3"])
    original = vlm.model.model.forward

    def strict(*given: Any, **how: Any) -> Any:
        if isinstance(how.get("attention_mask"), dict):
            raise TypeError("a dict is no mask")
        return original(*given, **how)

    monkeypatch.setattr(vlm.model.model, "forward", strict)
    assert vlm.way == Way(
        False, "its forward does not take a shared prefix (TypeError: a dict is no mask)"
    )
    (prompt, _) = ways.made_up_prompts(vlm)
    ((completion,),) = sample_lists(
        vlm, [prompt], num_samples=1, temperature=1.0, max_new_tokens=3, seeds=[1]
    )
    expected = ways.plain_logprob(vlm, prompt, completion.token_ids)
    assert completion.sampler_logprob == pytest.approx(expected, abs=1e-4)


def test_a_model_that_cannot_be_computed_plainly_is_named(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = load(directories["gemma3"])
    for error, words in (
        (ValueError("too small"), "ValueError: too small"),
        (InputError("no template"), "InputError: no template"),
    ):

        def refuse(*given: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(ways, "encode_prompt", refuse)
        assert replace(vlm).way == Way(
            False, f"made-up prompts cannot be computed one by one ({words})"
        )


@pytest.mark.parametrize("known", [True, False])
def test_positions_by_an_unknown_rule_fail_the_proof_of_an_untried_family_alone(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    vlm = load(directories["qwen2_vl-window"])

    original = vlm.model.model.get_rope_index

    def rule(input_ids: torch.Tensor, **given: Any) -> Any:
        """Takes what its model gives it, and does not say what that is."""
        if not given:
            raise TypeError("the grid is missing")
        return original(input_ids, **given)

    monkeypatch.setattr(vlm.model.model, "get_rope_index", rule)
    vlm = replace(vlm, family=replace(vlm.family, known=known))
    if known:
        with pytest.raises(TypeError, match="the grid is missing"):
            ways.made_up_prompts(vlm)
    else:
        assert ways.made_up_prompts(vlm)[0].positions.shape[0] == 1
        assert "not exact on this model" in vlm.way.why and not vlm.shares_prefix


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("full"),
        MemoryError("full"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: full"),
    ],
)
@pytest.mark.parametrize("place", ["force_lists", "plain_logprob", "encode_prompt"])
def test_memory_that_runs_out_is_no_answer_but_one_error(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch, error: Exception, place: str
) -> None:
    vlm = load(directories["gemma3"])
    monkeypatch.setattr(ways, place, failing(error))
    with pytest.raises(ConfigError, match=r"memory ran out while .* full") as caught:
        sample_some(vlm)
    assert "train.forward: separate" in str(caught.value.fix)


@pytest.mark.parametrize("kind", [torch.AcceleratorError, RuntimeError])
def test_an_error_of_the_accelerator_is_no_refusal(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: type[RuntimeError]
) -> None:
    vlm = load(directories["gemma3"])
    words = "CUDA error: an illegal memory access was encountered"
    error = kind(words)
    monkeypatch.setattr(ways, "force_lists", failing(error))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        vlm.way  # noqa: B018


def failing(error: Exception) -> Callable[..., None]:
    def fail(*given: Any, **how: Any) -> None:
        raise error

    return fail


def sample_some(vlm: Vlm) -> None:
    prompt = encode_prompt(vlm, noise_image(0, 48, 40), "where is it?")
    sample_lists(vlm, [prompt], num_samples=2, temperature=1.0, max_new_tokens=3, seeds=[1])


# Layers with a recurrent state.


def states_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every completion continues from the states of the first prompt."""
    original = LayerStates.repeated

    def of_the_first(self: LayerStates, counts: Any) -> LayerStates:
        return original(self, counts).map(lambda state: state[:1].expand_as(state).clone())

    monkeypatch.setattr(LayerStates, "repeated", of_the_first)


def states_do_not_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """They stay where they were when the completions before them ended."""
    original = GrowingStates.read_tokens

    def unmoved(self: GrowingStates, prompts: Any, completions: Any) -> Any:
        steps = original(self, prompts, completions)
        moved = None if steps.moved is None else torch.arange(len(steps.moved))
        return replace(steps, moved=moved)

    monkeypatch.setattr(GrowingStates, "read_tokens", unmoved)


def states_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Completions start from nothing."""
    original = LayerStates.repeated
    monkeypatch.setattr(
        LayerStates, "repeated", lambda self, counts: original(self, counts).map(torch.zeros_like)
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_healthy_hybrid_shares(tiny_qwen3_5: Path, dtype: str) -> None:
    assert load(tiny_qwen3_5, dtype).shares_prefix


@pytest.mark.parametrize("seed", range(3))
def test_a_deep_healthy_hybrid_shares_in_bf16(tmp_path: Path, seed: int) -> None:
    """16 layers: one token and many have kernels of their own, which round differently."""
    vlm = load(save_tiny_qwen3_5(tmp_path, seed, num_hidden_layers=16), "bfloat16")
    assert vlm.shares_prefix, vlm.way.why


@pytest.mark.parametrize("layers", [4, 16])
@pytest.mark.parametrize("fault", [states_are_shared, states_do_not_move, states_are_left_out])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_fault_of_a_hybrid_is_refused_with_the_figures(
    tmp_path: Path,
    dtype: str,
    fault: Callable[[pytest.MonkeyPatch], None],
    layers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vlm = load(save_tiny_qwen3_5(tmp_path, num_hidden_layers=layers), dtype)
    fault(monkeypatch)
    assert not vlm.shares_prefix
    assert vlm.way.why.startswith("it is not exact on this model: shared prefix against")


def test_given_answers_cost_the_same_in_transformers_own_cache(tiny_qwen3_5: Path) -> None:
    """The further plain run of hybrids in bf16, against one forward per answer."""
    vlm = load(tiny_qwen3_5)
    end = vlm.eos_token_ids[0]
    answers = [[11, 12, end], [13, 14, 15, 16, 17, 18, end], [end]]
    for prompt in ways.made_up_prompts(vlm):
        found = force_list(vlm, prompt, answers)
        expected = [ways.plain_logprob(vlm, prompt, answer) for answer in answers]
        assert found == pytest.approx(expected, abs=1e-4)


def test_layers_that_cannot_be_prepared_are_a_reason(tiny_qwen3_5: Path) -> None:
    """As where ZeRO-3 has taken their weights away."""
    vlm = load(tiny_qwen3_5)
    for module in vlm.model.modules():
        if isinstance(module, torch.nn.Conv1d):
            module.weight.data = torch.empty(0)
    assert not vlm.shares_prefix
    assert vlm.way.why.startswith("its layers with a state cannot be prepared (")
