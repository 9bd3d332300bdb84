"""Plain decoding with transformers' generate: the same distribution and log-probabilities."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from scipy.stats import chisquare
from tiny_families import MODEL_TYPES, save_tiny_family
from tiny_models import noise_image, save_tiny_llava

from perpo_pipeline import cli
from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.store.artifacts import open_version
from perpo_pipeline.train.shared_prefix import CompletionList, pack_lists, packed_logps
from perpo_pipeline.vlm import decoding
from perpo_pipeline.vlm import plain_decoding as plain
from perpo_pipeline.vlm.completion import Completion
from perpo_pipeline.vlm.decoding import greedy_decode, sample_lists
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.models import EncodedPrompt, Vlm, Way
from perpo_pipeline.vlm.prompts import encode_prompt

IMAGE_ID = 3
MANY_ENDS = (2, *range(200, 300))  # as in test_transformers_backend: answers of many lengths
TEXTS = ["where?", "Where is the red square?", "red"]
HOSTILE = {
    "do_sample": True,
    "temperature": 0.01,
    "top_k": 1,
    "top_p": 0.1,
    "min_p": 0.9,
    "typical_p": 0.1,
    "epsilon_cutoff": 0.5,
    "eta_cutoff": 0.5,
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "bad_words_ids": [[5]],
    "suppress_tokens": list(range(4, 150)),
    "begin_suppress_tokens": list(range(4, 250)),
    "forced_eos_token_id": 290,
    "min_new_tokens": 5,
    "min_length": 50,
    "sequence_bias": [[[9], 50.0]],
    "guidance_scale": 3.0,
    "exponential_decay_length_penalty": [1, 9.0],
    "stop_strings": ["a", "e"],
    "num_beams": 3,
    "max_time": 1e-9,
    "renormalize_logits": True,
    "token_healing": True,
    "watermarking_config": {"greenlist_ratio": 0.1, "bias": 20.0},
    "cache_implementation": "static",
}


def load(directory: Path) -> Vlm:
    return load_vlm(resolve_model(str(directory)), dtype="float32", device="cpu")


def untested(vlm: Vlm) -> Vlm:
    """The same model, as if its family were not in FAMILIES and failed the proof."""
    refused = Way(False, "it is not exact on this model")
    return replace(vlm, family=replace(vlm.family, known=False), prove=lambda _: refused)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Vlm:
    return load(save_tiny_llava(tmp_path_factory.mktemp("llava")))


@pytest.fixture(scope="module")
def vlm(known: Vlm) -> Vlm:
    return untested(known)


@pytest.fixture(scope="module")
def stopping(vlm: Vlm) -> Vlm:
    return replace(vlm, eos_token_ids=MANY_ENDS)


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Vlm:
    """A Mistral after the projector: a token sees the last 8; the prompt has over 24."""
    directory = save_tiny_llava(tmp_path_factory.mktemp("mistral"))
    config = json.loads((directory / "config.json").read_text())
    config["text_config"] |= {"model_type": "mistral", "sliding_window": 8}
    (directory / "config.json").write_text(json.dumps(config))
    return untested(load(directory))


@pytest.fixture(autouse=True)
def no_packed_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a model that must not share a prefix is decoded in the packed cache."""
    original = decoding._Batch

    def guarded(vlm: Vlm, *arguments: Any) -> Any:
        assert vlm.shares_prefix
        return original(vlm, *arguments)

    monkeypatch.setattr(decoding, "_Batch", guarded)


def encode(vlm: Vlm, index: int) -> EncodedPrompt:
    return encode_prompt(vlm, noise_image(index), TEXTS[index])


def draw(vlm: Vlm, indices: list[int], **settings: Any) -> list[list[Completion]]:
    arguments = {"num_samples": 6, "temperature": 1.0, "max_new_tokens": 9} | settings
    prompts = [encode(vlm, i) for i in indices]
    return sample_lists(vlm, prompts, seeds=[100 + i for i in indices], **arguments)


def ids(lists: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.token_ids for completion in row] for row in lists]


@torch.no_grad()
def plain_logits(vlm: Vlm, prompt: EncodedPrompt, said: tuple[int, ...]) -> torch.Tensor:
    """Logits (len(said) + 1, V) after the prompt and each said token, by one forward, no cache."""
    sequence = torch.cat([prompt.input_ids, torch.tensor(said, dtype=torch.long)])[None]
    types = {}
    if prompt.token_types is not None:
        pad = torch.zeros(len(said), dtype=prompt.token_types.dtype)
        types = {"mm_token_type_ids": torch.cat([prompt.token_types, pad])[None]}
    output = vlm.model(input_ids=sequence, use_cache=False, **prompt.tensors, **types)
    logits: torch.Tensor = output.logits[0, prompt.num_tokens - 1 :].double()
    return logits


def forced_logprob(vlm: Vlm, prompt: EncodedPrompt, said: tuple[int, ...]) -> float:
    """Summed log-probability of `said` by one forward without a cache."""
    logps = plain_logits(vlm, prompt, said)[:-1].log_softmax(-1)
    return sum(row[token].item() for row, token in zip(logps, said, strict=True))


@pytest.mark.parametrize("temperature", [0.3, 0.6])
def test_frequencies_follow_the_tempered_softmax(vlm: Vlm, temperature: float) -> None:
    prompt = encode(vlm, 1)
    lists = sample_lists(
        vlm,
        [prompt] * 4,
        num_samples=600,
        temperature=temperature,
        max_new_tokens=2,
        seeds=range(4),
    )
    drawn = [c.token_ids for row in lists for c in row]
    most_likely = Counter(y[0] for y in drawn).most_common(1)[0][0]
    seconds = Counter(y[1] for y in drawn if y[0] == most_likely)
    for counts, said in ((Counter(y[0] for y in drawn), ()), (seconds, (most_likely,))):
        logits = plain_logits(vlm, prompt, said)[-1]
        logits[IMAGE_ID] = -torch.inf
        assert p_value(counts, (logits / temperature).softmax(-1)) > 1e-3


def p_value(counts: Counter[int], probabilities: torch.Tensor) -> float:
    """Chi-square over the tokens expected at least 5 times, all others in one bin."""
    total = sum(counts.values())
    expected = total * probabilities
    common = (expected >= 5).nonzero().flatten().tolist()
    assert len(common) >= 5
    observed = [counts[i] for i in common]
    rest = (total - sum(observed), total - expected[common].sum().item())
    return float(chisquare([*observed, rest[0]], [*expected[common].tolist(), rest[1]]).pvalue)


def test_greedy_equals_the_packed_greedy(known: Vlm, stopping: Vlm) -> None:
    prompts = [encode(known, i) for i in range(3)]
    packed = greedy_decode(replace(known, eos_token_ids=MANY_ENDS), prompts, max_new_tokens=12)
    for one, other in zip(greedy_decode(stopping, prompts, max_new_tokens=12), packed, strict=True):
        assert replace(one, sampler_logprob=0) == replace(other, sampler_logprob=0)
        assert one.sampler_logprob == pytest.approx(other.sampler_logprob, abs=1e-4)


def test_logprobs_equal_teacher_forcing(stopping: Vlm) -> None:
    lists = draw(stopping, [0, 1, 2], temperature=0.7)
    packed = [CompletionList(encode(stopping, i), row) for i, row in enumerate(ids(lists))]
    with torch.no_grad():
        expected = packed_logps(stopping.model, pack_lists(stopping, packed))
    sampled = torch.tensor([[c.sampler_logprob for c in row] for row in lists])
    torch.testing.assert_close(sampled, expected, atol=1e-4, rtol=0)


def test_a_penalty_changes_the_draws_and_not_their_logprobs(stopping: Vlm) -> None:
    """Drawn as by `generate` with the penalty in its own config, of the same seed."""
    prompt, how = encode(stopping, 1), {"num_samples": 4, "temperature": 0.8, "top_p": 0.9}
    (row,) = draw(stopping, [1], repetition_penalty=1.5, **how)
    assert ids([row]) != ids(draw(stopping, [1], **how))
    with plain._seeded(stopping.device, 101), plain._without_generation_config(stopping.model):
        generated = stopping.model.generate(
            **plain._inputs(stopping, [prompt] * 4),
            do_sample=True,
            temperature=0.8,
            top_k=0,
            top_p=0.9,
            repetition_penalty=1.5,
            suppress_tokens=[IMAGE_ID],
            max_new_tokens=9,
            eos_token_id=list(MANY_ENDS),
            pad_token_id=stopping.pad_token_id,
        )
    rows = generated[:, prompt.num_tokens :].tolist()
    assert [list(c.token_ids) for c in row] == [plain._until_end(r, set(MANY_ENDS)) for r in rows]
    for one in row:
        expected = forced_logprob(stopping, prompt, one.token_ids)
        assert one.sampler_logprob == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if name != "llava"])
def test_tiles_and_three_axes_are_read_as_in_one_forward(model_type: str, tmp_path: Path) -> None:
    tested = load(save_tiny_family(model_type, tmp_path))
    vlm = untested(tested)
    prompt = encode_prompt(vlm, noise_image(0, 96, 48), TEXTS[1])
    settings = {"temperature": 1.0, "num_samples": 3, "max_new_tokens": 5, "seeds": [4]}
    ((*drawn,),) = sample_lists(vlm, [prompt], **settings)
    for one in drawn:
        expected = forced_logprob(vlm, prompt, one.token_ids)
        assert one.sampler_logprob == pytest.approx(expected, abs=1e-4)
    (greedy,), (packed,) = (greedy_decode(v, [prompt], max_new_tokens=8) for v in (vlm, tested))
    assert greedy.token_ids == packed.token_ids


def test_every_row_reads_the_whole_image_before_linear_attention(tiny_qwen3_5: Path) -> None:
    """Qwen3.5 is one of the families whose image `num_return_sequences` would shuffle."""
    vlm = untested(load(tiny_qwen3_5))
    prompt = encode_prompt(vlm, noise_image(0, 96, 64), TEXTS[1])
    (row,) = sample_lists(
        vlm, [prompt], num_samples=3, temperature=1.0, max_new_tokens=5, seeds=[1]
    )
    for one in row:
        expected = forced_logprob(vlm, prompt, one.token_ids)
        assert one.sampler_logprob == pytest.approx(expected, abs=1e-4)


class TestSlidingWindow:
    def test_completions_and_logprobs_are_those_of_a_forward_without_a_cache(
        self, windowed: Vlm, known: Vlm
    ) -> None:
        assert not windowed.shares_prefix
        prompt = encode(windowed, 1)
        assert prompt.num_tokens > 24
        (row,) = draw(windowed, [1], max_new_tokens=12)
        for one in row:
            expected = forced_logprob(windowed, prompt, one.token_ids)
            assert one.sampler_logprob == pytest.approx(expected, abs=1e-4)
            # `known` has the same weights and no window.
            assert abs(expected - forced_logprob(known, prompt, one.token_ids)) > 0.1

    def test_greedy_is_the_most_likely_token_of_a_forward_without_a_cache(
        self, windowed: Vlm
    ) -> None:
        prompt = encode(windowed, 1)
        (one,) = greedy_decode(windowed, [prompt], max_new_tokens=12)
        logits = plain_logits(windowed, prompt, one.token_ids)[:-1]
        logits[:, IMAGE_ID] = -torch.inf
        assert one.token_ids == tuple(logits.argmax(-1).tolist())


class TestIndependence:
    def test_a_prompt_draws_the_same_alone_in_a_batch_and_in_another_order(
        self, stopping: Vlm
    ) -> None:
        together = ids(draw(stopping, [0, 1, 2]))
        assert len({len(y) for row in together for y in row}) > 3
        assert ids(draw(stopping, [2, 0, 1])) == [together[i] for i in (2, 0, 1)]
        assert [ids(draw(stopping, [i]))[0] for i in range(3)] == together

    def test_other_seeds_draw_other_completions(self, vlm: Vlm) -> None:
        prompt = encode(vlm, 0)
        one, other = sample_lists(
            vlm, [prompt, prompt], num_samples=3, temperature=1.0, max_new_tokens=5, seeds=[1, 2]
        )
        assert len({c.token_ids for c in one + other}) == 6

    def test_global_randomness_is_neither_used_nor_changed(self, vlm: Vlm) -> None:
        torch.manual_seed(0)
        expected = torch.rand(1)
        torch.manual_seed(0)
        first = ids(draw(vlm, [0]))
        assert torch.equal(torch.rand(1), expected)
        assert ids(draw(vlm, [0])) == first


def test_a_hostile_generation_config_changes_nothing_and_is_kept(vlm: Vlm, tmp_path: Path) -> None:
    path = save_tiny_llava(tmp_path) / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | HOSTILE))
    hostile = untested(load(tmp_path))
    given = hostile.model.generation_config.to_dict()
    assert {key: given[key] for key in HOSTILE if key != "watermarking_config"} == {
        key: value for key, value in HOSTILE.items() if key != "watermarking_config"
    }
    assert draw(hostile, [0, 1]) == draw(vlm, [0, 1])
    prompts = [encode(vlm, 0), encode(vlm, 1)]
    assert greedy_decode(hostile, prompts, max_new_tokens=9) == greedy_decode(
        vlm, prompts, max_new_tokens=9
    )
    assert hostile.model.generation_config.to_dict() == given


def test_the_image_placeholder_is_banned_but_counts_in_the_logprob(tmp_path: Path) -> None:
    vlm = untested(load(save_tiny_llava(tmp_path)))
    prompt = encode(vlm, 0)
    favourite = int(plain_logits(vlm, prompt, ())[-1].argmax())
    vlm.model.lm_head.weight[IMAGE_ID] = 3 * vlm.model.lm_head.weight[favourite]
    assert plain_logits(vlm, prompt, ())[-1].argmax() == IMAGE_ID
    (row,) = draw(vlm, [0], num_samples=20)
    assert IMAGE_ID not in {t for c in row for t in c.token_ids}
    assert row[0].sampler_logprob == pytest.approx(
        forced_logprob(vlm, prompt, row[0].token_ids), abs=1e-4
    )
    assert IMAGE_ID not in greedy_decode(vlm, [prompt], max_new_tokens=8)[0].token_ids


def test_a_placeholder_outside_the_heads_vocabulary_needs_no_ban(vlm: Vlm) -> None:
    beyond = replace(vlm, image_token_ids=(IMAGE_ID, 10_000))
    assert draw(beyond, [0]) == draw(vlm, [0])


def test_the_end_token_is_kept_and_names_the_reason(stopping: Vlm) -> None:
    completions = [c for row in draw(stopping, [0, 1, 2], max_new_tokens=4) for c in row]
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    for completion in completions:
        *before, last = completion.token_ids
        assert not set(before) & set(MANY_ENDS)
        assert (completion.finish_reason == "stop") == (last in MANY_ENDS)
        assert len(completion.token_ids) == 4 or completion.finish_reason == "stop"
        visible = [t for t in completion.token_ids if t > 3]
        assert completion.text == stopping.tokenizer.decode(visible)


def test_a_drawn_padding_token_ends_nothing(vlm: Vlm) -> None:
    # The model's padding token 0 is an ordinary token where it is drawn before the end.
    assert plain._until_end([0, 7, 0, 2, 0, 0], {2}) == [0, 7, 0, 2]
    assert plain._until_end([0, 7, 0], {2}) == [0, 7, 0]


@pytest.mark.parametrize(
    "settings", [{"num_samples": 0}, {"temperature": 0.0}, {"max_new_tokens": 0}]
)
def test_impossible_settings_are_refused(vlm: Vlm, settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(settings))} is 0"):
        draw(vlm, [0], **settings)


def test_a_whole_number_is_a_temperature(vlm: Vlm) -> None:
    assert draw(vlm, [0], temperature=2) == draw(vlm, [0], temperature=2.0)


def test_a_generate_that_does_not_return_the_prompt_is_refused(
    vlm: Vlm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vlm.model, "generate", lambda **inputs: torch.full((6, 40), 5))
    with pytest.raises(InputError, match="does not return the prompt"):
        draw(vlm, [0])


def test_sample_and_eval_decode_plainly_and_sample_reports_why(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    windowed: Vlm,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("perpo_pipeline.vlm.loading.load_vlm", lambda *given, **how: windowed)
    lines = []
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "prompt": "?", "gt_text": "x"}))
    Path("data.jsonl").write_text("\n".join(lines))
    source = {"source": "jsonl", "path": "data.jsonl", "task": "vqa"}
    config = {
        "run": "r",
        "model": {"id": "testbed", "dtype": "float32", "device": "cpu"},
        "prepare": {"train": source, "test": source},
        "sample": {"num_samples": 2, "max_new_tokens": 4, "batch_size": 2},
        "eval": {"models": ["base"], "max_new_tokens": 4, "conditions": []},
    }
    Path("r.yaml").write_text(yaml.safe_dump(config))
    for command in ("prepare", "sample", "eval"):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([command, "--config", "r.yaml", "--quiet"])
        printed = capsys.readouterr().err
        assert not ended.value.code, printed
        if command == "sample":
            assert printed.count("slow: it is not exact on this model") == 1
    sampled = open_version(Path("data/r/samples/train")).manifest
    assert sampled["rows"] == 6
    assert "it is not exact on this model" in sampled["notes"]["slow"]
    assert open_version(Path("data/r/predictions/base@test")).manifest["rows"] == 3
