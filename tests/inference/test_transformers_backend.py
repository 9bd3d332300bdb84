"""Sampling: the exact distribution, each prompt's own randomness, honest log-probabilities."""

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from tiny_families import save_tiny_family
from tiny_models import noise_image, save_tiny_llava

from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.config.sample import SampleConfig
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.inference import transformers_backend
from perpo_pipeline.inference.backend import BackendSetup, Failure, Row, SampledList
from perpo_pipeline.inference.transformers_backend import TransformersBackend
from perpo_pipeline.train.shared_prefix import CompletionList, pack_lists, packed_logps
from perpo_pipeline.vlm.completion import Completion
from perpo_pipeline.vlm.decoding import greedy_decode, sample_lists
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.inputs import encode_row
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.models import EncodedPrompt, Vlm
from perpo_pipeline.vlm.prompts import encode_prompt

IMAGE_ID = 3
# A random model hardly ever draws </s>. With a third of the vocabulary as end tokens, answers have
# many lengths, and rows and completions leave the batch at different steps.
MANY_ENDS = (2, *range(200, 300))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def vlm(model_dir: Path) -> Vlm:
    return load_vlm(resolve_model(str(model_dir)), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def stopping(vlm: Vlm) -> Vlm:
    return replace(vlm, eos_token_ids=MANY_ENDS)


def encode(vlm: Vlm, index: int) -> EncodedPrompt:
    texts = ["where?", "Where is the red square?", "red", "which circle is leftmost of all?", "a b"]
    return encode_prompt(vlm, noise_image(index), texts[index])


def draw(vlm: Vlm, indices: list[int], **settings: object) -> list[list[Completion]]:
    arguments: dict[str, object] = {"num_samples": 6, "temperature": 1.0, "max_new_tokens": 9}
    return sample_lists(
        vlm,
        [encode(vlm, i) for i in indices],
        seeds=[100 + i for i in indices],
        **arguments | settings,  # type: ignore[arg-type]
    )


def ids(lists: list[list[Completion]]) -> list[list[tuple[int, ...]]]:
    return [[completion.token_ids for completion in row] for row in lists]


@torch.no_grad()
def next_probabilities(vlm: Vlm, prompt: EncodedPrompt, said: list[int], t: float) -> torch.Tensor:
    """softmax(logits / t) over what may follow, by one plain forward of the model."""
    sequence = torch.cat([prompt.input_ids, torch.tensor(said, dtype=torch.long)])[None]
    logits = vlm.model(input_ids=sequence, **prompt.tensors).logits[0, -1].double()
    logits[IMAGE_ID] = -torch.inf
    return (logits / t).softmax(-1)


class TestIndependence:
    def test_a_prompt_draws_the_same_alone_in_a_batch_and_in_another_order(
        self, stopping: Vlm
    ) -> None:
        together = ids(draw(stopping, [0, 1, 2, 3, 4]))
        assert len({len(y) for row in together for y in row}) > 3
        assert ids(draw(stopping, [4, 2, 0, 3, 1])) == [together[i] for i in (4, 2, 0, 3, 1)]
        for index in range(5):
            assert ids(draw(stopping, [index])) == [together[index]]

    def test_other_seeds_draw_other_completions(self, vlm: Vlm) -> None:
        prompt = encode(vlm, 0)
        one, other = sample_lists(
            vlm, [prompt, prompt], num_samples=3, temperature=1.0, max_new_tokens=5, seeds=[1, 2]
        )
        assert not {c.token_ids for c in one} & {c.token_ids for c in other}

    def test_completions_of_one_prompt_differ(self, vlm: Vlm) -> None:
        assert len({c.token_ids for c in draw(vlm, [0], num_samples=20)[0]}) == 20

    def test_a_higher_token_limit_only_lengthens_answers(self, stopping: Vlm) -> None:
        short = draw(stopping, [0, 1], max_new_tokens=3)
        long = draw(stopping, [0, 1], max_new_tokens=8)
        for a, b in zip(ids(short), ids(long), strict=True):
            assert [y[:3] for y in b] == a

    def test_global_randomness_is_neither_used_nor_changed(self, vlm: Vlm) -> None:
        torch.manual_seed(0)
        expected = torch.rand(1)
        torch.manual_seed(0)
        first = ids(draw(vlm, [0]))
        assert torch.equal(torch.rand(1), expected)
        assert ids(draw(vlm, [0])) == first


class TestDistribution:
    @pytest.mark.parametrize("temperature", [0.3, 0.6])
    def test_frequencies_of_first_and_second_tokens_follow_the_tempered_softmax(
        self, vlm: Vlm, temperature: float
    ) -> None:
        prompt = encode(vlm, 1)
        lists = sample_lists(
            vlm,
            [prompt] * 20,
            num_samples=300,
            temperature=temperature,
            max_new_tokens=2,
            seeds=list(range(20)),
        )
        drawn = [c.token_ids for row in lists for c in row]
        first = Counter(y[0] for y in drawn)
        assert self.p_value(first, next_probabilities(vlm, prompt, [], temperature)) > 1e-3
        most_likely = first.most_common(1)[0][0]
        second = Counter(y[1] for y in drawn if y[0] == most_likely)
        expected = next_probabilities(vlm, prompt, [most_likely], temperature)
        assert self.p_value(second, expected) > 1e-3

    @staticmethod
    def p_value(counts: Counter[int], probabilities: torch.Tensor) -> float:
        """Chi-square over the tokens expected at least 5 times, all others in one bin."""
        total = sum(counts.values())
        common = [i for i, p in enumerate(probabilities.tolist()) if p * total >= 5]
        assert len(common) >= 5
        observed = [counts[i] for i in common]
        expected = [probabilities[i].item() * total for i in common]
        rest = total - sum(expected)
        if rest > 1:
            observed.append(total - sum(observed))
            expected.append(rest)
        scale = sum(observed) / sum(expected)
        return float(chisquare(observed, [e * scale for e in expected]).pvalue)

    def test_a_hostile_generation_config_changes_nothing(self, vlm: Vlm, tmp_path: Path) -> None:
        hostile_dir = save_tiny_llava(tmp_path / "hostile")
        path = hostile_dir / "generation_config.json"
        settings = json.loads(path.read_text())
        settings |= {"do_sample": True, "top_k": 1, "top_p": 0.1, "temperature": 0.01}
        settings |= {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "min_length": 50}
        path.write_text(json.dumps(settings))
        hostile = load_vlm(resolve_model(str(hostile_dir)), dtype="float32", device="cpu")
        assert hostile.model.generation_config.top_k == 1
        assert ids(draw(hostile, [0, 1])) == ids(draw(vlm, [0, 1]))

    def test_the_image_placeholder_is_never_drawn(self, model_dir: Path) -> None:
        vlm = load_vlm(resolve_model(str(model_dir)), dtype="float32", device="cpu")
        prompt = encode(vlm, 0)
        favourite = int(next_probabilities(vlm, prompt, [], 1.0).argmax())
        head = vlm.model.lm_head.weight
        head[IMAGE_ID] = 3 * head[favourite]
        with torch.no_grad():
            logits = vlm.model(input_ids=prompt.input_ids[None], **prompt.tensors).logits[0, -1]
        assert logits.argmax() == IMAGE_ID
        drawn = {t for row in ids(draw(vlm, [0, 1], num_samples=20)) for y in row for t in y}
        assert IMAGE_ID not in drawn and favourite in drawn
        assert IMAGE_ID not in greedy_decode(vlm, [prompt], max_new_tokens=8)[0].token_ids


class TestRestrictions:
    """Configured restrictions act as in `generate`; there are none by default."""

    def test_penalised_greedy_equals_generate(self, stopping: Vlm) -> None:
        """Prompts of different lengths in one batch, answers that end at different steps."""
        found = draw(stopping, [0, 1, 3], top_k=1, repetition_penalty=1.5, max_new_tokens=20)
        plain = draw(stopping, [0, 1, 3], top_k=1, max_new_tokens=20)
        assert ids(found) != ids(plain)
        for index, row in zip([0, 1, 3], found, strict=True):
            prompt = encode(stopping, index)
            generated = stopping.model.generate(
                input_ids=prompt.input_ids[None],
                attention_mask=torch.ones_like(prompt.input_ids[None]),
                **prompt.tensors,
                do_sample=False,
                repetition_penalty=1.5,
                suppress_tokens=[IMAGE_ID],
                eos_token_id=list(MANY_ENDS),
                pad_token_id=stopping.pad_token_id,
                max_new_tokens=20,
            )
            expected = tuple(generated[0, prompt.num_tokens :].tolist())
            assert {one.token_ids for one in row} == {expected}

    @pytest.mark.parametrize("restriction", [{"top_k": 3}, {"top_p": 0.3}])
    def test_exactly_the_most_likely_tokens_are_drawn(
        self, vlm: Vlm, restriction: dict[str, float]
    ) -> None:
        prompt = encode(vlm, 1)
        ranked = next_probabilities(vlm, prompt, [], 2.0).sort(descending=True)
        before = ranked.values.cumsum(0) - ranked.values
        count = int(restriction.get("top_k", (before < 0.3).sum()))
        settings = {"num_samples": 1000, "temperature": 2.0, "max_new_tokens": 1}
        (row,) = draw(vlm, [1], **settings, **restriction)
        assert {one.token_ids[0] for one in row} == set(ranked.indices[:count].tolist())
        (free,) = draw(vlm, [1], **settings)
        assert len({one.token_ids[0] for one in free}) > count

    def test_log_probabilities_stay_those_of_the_whole_vocabulary(self, stopping: Vlm) -> None:
        prompt = encode(stopping, 1)
        (row,) = draw(stopping, [1], top_k=3, repetition_penalty=1.5)
        with torch.inference_mode():
            batch = pack_lists(stopping, [CompletionList(prompt, [one.token_ids for one in row])])
            expected = packed_logps(stopping.model, batch)[0].tolist()
        assert [one.sampler_logprob for one in row] == pytest.approx(expected, abs=1e-4)


class TestCompletions:
    def test_logprobs_equal_teacher_forcing(self, stopping: Vlm) -> None:
        lists = draw(stopping, [0, 1, 2, 3], temperature=0.7)
        packed = [
            CompletionList(encode(stopping, i), [c.token_ids for c in row])
            for i, row in enumerate(lists)
        ]
        with torch.no_grad():
            expected = packed_logps(stopping.model, pack_lists(stopping, packed))
        sampled = torch.tensor([[c.sampler_logprob for c in row] for row in lists])
        torch.testing.assert_close(sampled, expected, atol=1e-4, rtol=0)

    def test_the_end_token_is_kept_and_names_the_reason(self, stopping: Vlm) -> None:
        rows = draw(stopping, [0, 1, 2], max_new_tokens=4)
        completions = [completion for row in rows for completion in row]
        assert {c.finish_reason for c in completions} == {"stop", "length"}
        for completion in completions:
            *before, last = completion.token_ids
            assert not set(before) & set(MANY_ENDS)
            assert (completion.finish_reason == "stop") == (last in MANY_ENDS)
            assert len(completion.token_ids) == 4 or completion.finish_reason == "stop"

    def test_an_end_token_at_the_limit_still_counts_as_stop(self, vlm: Vlm) -> None:
        always = replace(vlm, eos_token_ids=tuple(range(300)))
        for completion in draw(always, [0], max_new_tokens=1)[0]:
            assert (len(completion.token_ids), completion.finish_reason) == (1, "stop")

    def test_text_is_decoded_without_special_tokens(self, vlm: Vlm) -> None:
        for completion in draw(vlm, [0])[0]:
            visible = [t for t in completion.token_ids if t > 3]
            assert completion.text == vlm.tokenizer.decode(visible)

    def test_the_image_is_encoded_once_per_prompt(self, vlm: Vlm) -> None:
        seen: list[int] = []
        hook = vlm.model.model.vision_tower.register_forward_hook(
            lambda module, args, output: seen.append(output.last_hidden_state.shape[0])
        )
        draw(vlm, [0, 1, 2], num_samples=8)
        hook.remove()
        assert seen == [3]

    def test_a_placeholder_outside_the_heads_vocabulary_needs_no_ban(self, vlm: Vlm) -> None:
        beyond = replace(vlm, image_token_ids=(IMAGE_ID, 10_000))
        assert draw(beyond, [0]) == draw(vlm, [0])


class TestGreedy:
    def test_it_equals_generate(self, stopping: Vlm) -> None:
        prompts = [encode(stopping, i) for i in range(5)]
        completions = greedy_decode(stopping, prompts, max_new_tokens=12)
        for prompt, completion in zip(prompts, completions, strict=True):
            generated = stopping.model.generate(
                input_ids=prompt.input_ids[None],
                attention_mask=torch.ones(1, prompt.num_tokens, dtype=torch.long),
                **prompt.tensors,
                do_sample=False,
                max_new_tokens=12,
                eos_token_id=list(MANY_ENDS),
                pad_token_id=0,
                suppress_tokens=[IMAGE_ID],
            )
            assert list(completion.token_ids) == generated[0, prompt.num_tokens :].tolist()

    def test_no_prompts_give_no_completions(self, vlm: Vlm) -> None:
        assert greedy_decode(vlm, [], max_new_tokens=3) == []


def make_row(index: int, prompt: str = "where?", size: tuple[int, int] = (48, 40)) -> Row:
    file = io.BytesIO()
    noise_image(index, *size).save(file, "PNG")
    image = {"bytes": file.getvalue(), "path": None}
    return {"prompt_id": f"p{index}", "image": image, "image_sha256": "", "prompt": prompt}


class TestBackend:
    """The backend turns rows into lists or failures."""

    def open(self, model: Path, scratch: Path, **settings: object) -> TransformersBackend:
        config = {"num_samples": 3, "max_new_tokens": 8, "temperature": 1.0} | settings
        return TransformersBackend(
            BackendSetup(
                ModelConfig(id=str(model), device="cpu"),
                resolve_model(str(model)),
                {"dtype": "float32", "preprocess": "processor"},
                SampleConfig.model_validate(config),
                scratch,
            )
        )

    def reasons(self, found: list[SampledList | Failure]) -> list[str | None]:
        return [one.reason if isinstance(one, Failure) else None for one in found]

    def test_memory_that_runs_out_names_what_to_lower(
        self, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fills(*_: Any, **__: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nMore.")

        backend = self.open(model_dir, tmp_path)
        monkeypatch.setattr(transformers_backend, "sample_lists", fills)
        with pytest.raises(ConfigError) as caught:
            backend.sample([make_row(0), make_row(1)], [1, 2])
        assert caught.value.what == (
            "memory ran out while 2 prompts together were answered: CUDA out of memory. Tried to "
            "allocate 9 GiB."
        )
        assert "lower sample.batch_size (the answers are then another version, begun" in str(
            caught.value.fix
        )
        with pytest.raises(ConfigError, match="one prompt was answered") as caught:
            backend.sample([make_row(0)], [1])
        fix = str(caught.value.fix)
        assert "batch_size" not in fix and "sample.max_new_tokens or model.max_pixels or" in fix
        assert "sample.num_samples" in fix

        def breaks(*_: Any, **__: Any) -> Any:
            raise RuntimeError("shapes differ")

        monkeypatch.setattr(transformers_backend, "sample_lists", breaks)
        with pytest.raises(RuntimeError, match="shapes differ"):
            backend.sample([make_row(0)], [1])

    def test_an_unreadable_row_fails_alone_and_every_row_is_reported(self, tmp_path: Path) -> None:
        backend = self.open(save_tiny_family("qwen2_5_vl", tmp_path / "qwen"), tmp_path)
        broken = make_row(1) | {"image": {"bytes": b"no image", "path": None}}
        rows = [make_row(0), broken, make_row(2, size=(900, 4)), make_row(3)]
        reported: list[tuple[int, SampledList | Failure]] = []
        found = backend.sample(rows, [1, 2, 3, 4], lambda *one: reported.append(one))
        assert reported == list(enumerate(found))
        first, second, third, fourth = self.reasons(found)
        assert first is None and fourth is None
        assert "it is not an image in one of PNG" in str(second)
        assert "aspect ratio must be smaller than 200" in str(third)

    def test_a_fault_of_every_row_stops_the_run(self, model_dir: Path, tmp_path: Path) -> None:
        backend = self.open(model_dir, tmp_path)
        backend.setup = replace(backend.setup, model_settings={"preprocess": "stretch"})
        with pytest.raises(ConfigError, match="preprocess is 'stretch'"):
            backend.sample([make_row(0)], [1])

    def test_lists_beyond_the_context_are_dropped(
        self, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The context is 512; a 7 is one token, so prompts are made of any length."""
        backend = self.open(model_dir, tmp_path)
        backend.vlm = replace(backend.vlm, eos_token_ids=(299,))  # no answer ends by itself
        empty = encode_row(backend.vlm, make_row(0, ""), "processor").num_tokens
        lengths = (503, 504, 505, 511, 512, 600)
        rows = [make_row(0, "7" * (length - empty)) for length in lengths]
        sampled: list[int] = []

        def spy(vlm: Vlm, prompts: Sequence[EncodedPrompt], **settings: Any) -> Any:
            sampled.extend(prompt.num_tokens for prompt in prompts)
            return sample_lists(vlm, prompts, **settings)

        monkeypatch.setattr(transformers_backend, "sample_lists", spy)
        fits, just, over, last, *no_room = self.reasons(backend.sample(rows, [7] * 6))
        assert sampled == [503, 504, 505, 511]
        assert fits is None and just is None
        assert over == (
            "the prompt has 505 tokens and an answer at least 8: more than the context of 512"
        )
        assert "511 tokens and an answer at least 8" in str(last)
        assert [reason and reason[:25] for reason in no_room] == [
            "the prompt has 512 tokens",
            "the prompt has 600 tokens",
        ]

    def test_an_unknown_context_limits_nothing(self, model_dir: Path, tmp_path: Path) -> None:
        backend = self.open(model_dir, tmp_path)
        backend.context = None
        assert self.reasons(backend.sample([make_row(0, "7" * 600)], [7])) == [None]


@pytest.mark.parametrize(
    "settings", [{"num_samples": 0}, {"temperature": 0.0}, {"max_new_tokens": 0}]
)
def test_impossible_settings_are_refused(vlm: Vlm, settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(settings))} is 0"):
        draw(vlm, [0], **settings)


def test_every_prompt_needs_a_seed(vlm: Vlm) -> None:
    with pytest.raises(ConfigError, match="got 1 seeds for 2 prompts"):
        sample_lists(
            vlm,
            [encode(vlm, 0)] * 2,
            num_samples=1,
            temperature=1.0,
            max_new_tokens=1,
            seeds=[0],
        )
