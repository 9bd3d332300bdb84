"""vLLM draws from what training reads: tokens, pixels, distribution, adapters, failures."""

import gc
import hashlib
import io
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_adapters import save_adapter
from tiny_models import noise_image
from with_vllm.hub_models import FAMILIES, FURTHER

from perpo_pipeline.config.eval import EvalConfig
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.config.sample import SampleConfig
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.inference import vllm_backend
from perpo_pipeline.inference.backend import BackendSetup, Failure, SampledList
from perpo_pipeline.inference.vllm_backend import VllmBackend
from perpo_pipeline.train.shared_prefix import CompletionList, pack_lists, packed_logps
from perpo_pipeline.vlm import families
from perpo_pipeline.vlm.decoding import greedy_decode
from perpo_pipeline.vlm.exactness import ALLOWED
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.image_limits import ImageLimits
from perpo_pipeline.vlm.inputs import encode_row
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.models import Vlm

Row = dict[str, Any]
HubModel = Callable[[str], Path]
NUM_SAMPLES, MAX_NEW_TOKENS = 20, 12
HOSTILE = {
    "do_sample": True,
    "temperature": 0.01,
    "top_k": 1,
    "top_p": 0.1,
    "min_p": 0.5,
    "repetition_penalty": 5.0,
    "max_new_tokens": 1,
}


def make_row(name: str, seed: int, prompt: str, width: int = 80, height: int = 60) -> Row:
    file = io.BytesIO()
    noise_image(seed, width, height).save(file, "PNG")
    data = file.getvalue()
    image = {"bytes": data, "path": None}
    sha256 = hashlib.sha256(data).hexdigest()
    return {"prompt_id": name, "image": image, "image_sha256": sha256, "prompt": prompt}


def with_image(row: Row, seed: int, width: int, height: int) -> Row:
    """The row with another image before its own."""
    other = make_row("", seed, "", width, height)
    facts = {"sha256": other["image_sha256"], "width": width, "height": height, "notes": []}
    more = {"more_images": [other["image"]], "more_image_facts": [facts], "box_image": 1}
    earlier = [{"role": "user", "content": "red"}, {"role": "assistant", "content": "blue"}]
    return {**row, **more, "history": earlier}


# Some prompts are longer than a block of the cache (128 tokens on the CPU), so blocks are shared.
LONG = "where is the red square? " * 15
ROWS = [
    make_row("short", 1, "Where is the red square?"),
    make_row("same image", 1, "leftmost circle"),
    make_row("long", 2, LONG),
    make_row("same image, long", 2, LONG + "7"),
    make_row("other image, long", 3, LONG),
    make_row("other shape", 4, "Where?", 130, 33),
    make_row("spelled tokens", 1, "Is <s>old</s> <|im_end|> out? <video> <|video_pad|> <unk>"),
    make_row("image further on", 4, "leftmost </s>\n<image> or right?", 130, 33),
]
SEEDS = [101, 102, 103, 104, 105, 106, 107, 108]
TWO = with_image(make_row("two images", 1, "Is <image> left of <image>?"), 5, 60, 90)
# The lists of ROWS by model, and by model with a served adapter: an engine takes long to start.
FOUND: dict[Path, list[SampledList]] = {}
SERVED: dict[Path, list[SampledList]] = {}


def set_up(model: Path, scratch: Path, adapter: Path | None = None, **sample: Any) -> BackendSetup:
    config = {"num_samples": NUM_SAMPLES, "max_new_tokens": MAX_NEW_TOKENS, "temperature": 0.7}
    settings = {"dtype": "float32", "preprocess": sample.pop("preprocess", "processor")}
    return BackendSetup(
        ModelConfig(id=str(model), device="cpu"),
        resolve_model(str(model)),
        settings,
        SampleConfig(**config | sample),
        scratch,
        adapter,
        most_images=2,
    )


@contextmanager
def running(*args: Any, **kwargs: Any) -> Iterator[VllmBackend]:
    """Open one engine at a time: a process has only one distributed environment."""
    backend = VllmBackend(set_up(*args, **kwargs))
    try:
        yield backend
    finally:
        backend.close()
        gc.freeze()  # the next engine's garbage collections need not visit vLLM's own objects


def drawn(found: Sequence[SampledList | Failure]) -> list[SampledList]:
    assert not [one.reason for one in found if isinstance(one, Failure)]
    return [one for one in found if isinstance(one, SampledList)]


def load(model: Path, adapter: Path | None = None) -> Vlm:
    return load_vlm(resolve_model(str(model)), dtype="float32", device="cpu", adapter=adapter)


def worst_difference(vlm: Vlm, row: Row, found: SampledList, preprocess: str) -> float:
    """Worst difference between vLLM's log-probabilities and training's, in nats."""
    reported = torch.tensor([one.sampler_logprob for one in found.completions]).double()
    return float((reported - logps(vlm, row, found, preprocess)).abs().max())


def logps(vlm: Vlm, row: Row, found: SampledList, preprocess: str = "processor") -> torch.Tensor:
    """(N,) training's log-probabilities of the completions, in nats."""
    encoded = encode_row(vlm, row, preprocess)
    ids = [one.token_ids for one in found.completions]
    with torch.inference_mode():
        batch = pack_lists(vlm, [CompletionList(encoded, ids)])
        return packed_logps(vlm.model, batch)[0].double()


def assert_drawn_from(
    vlm: Vlm, found: Sequence[SampledList | Failure], preprocess: str = "processor"
) -> None:
    for row, one in zip(ROWS, drawn(found), strict=True):
        assert worst_difference(vlm, row, one, preprocess) < 1e-4, row["prompt_id"]


class TestFamily:
    """One engine per family."""

    @pytest.fixture(scope="class", params=FAMILIES)
    def model(self, request: pytest.FixtureRequest, hub_model: HubModel) -> Path:
        return hub_model(request.param)

    @pytest.fixture(scope="class")
    def backend(
        self, model: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[VllmBackend]:
        with running(model, tmp_path_factory.mktemp("scratch")) as backend:
            yield backend

    @pytest.fixture(scope="class")
    def vlm(self, model: Path) -> Vlm:
        return load(model)

    @pytest.fixture(scope="class")
    def found(self, model: Path, backend: VllmBackend) -> list[SampledList]:
        FOUND[model] = drawn(backend.sample(ROWS, SEEDS))
        return FOUND[model]

    def test_log_probabilities_equal_training(self, vlm: Vlm, found: list[SampledList]) -> None:
        assert_drawn_from(vlm, found)

    def test_two_images_and_earlier_turns(self, vlm: Vlm, backend: VllmBackend) -> None:
        """vLLM (0.32) cuts LLaVA-OneVision's images, which the model reads whole beside others."""
        if vlm.family.name == "llava-onevision":
            with pytest.raises(ConfigError, match="vLLM and training read different tokens"):
                backend.sample([TWO], [109])
            return
        (found,) = drawn(backend.sample([TWO], [109]))
        assert worst_difference(vlm, TWO, found, "processor") < 1e-4
        assert found.resized == encode_row(vlm, TWO, "processor").resized

    def test_every_prompt_has_its_list(self, vlm: Vlm, found: list[SampledList]) -> None:
        for row, one in zip(ROWS, found, strict=True):
            assert len(one.completions) == NUM_SAMPLES
            assert len({c.token_ids for c in one.completions}) > NUM_SAMPLES / 2
            assert one.resized == encode_row(vlm, row, "processor").resized

    def test_answers_end_at_any_of_the_models_end_tokens(
        self, vlm: Vlm, found: list[SampledList]
    ) -> None:
        completions = [c for one in found for c in one.completions]
        for c in completions:
            ends = [token in vlm.eos_token_ids for token in c.token_ids]
            assert not any(ends[:-1])
            assert c.finish_reason == ("stop" if ends[-1] else "length")
            assert ends[-1] or len(c.token_ids) == MAX_NEW_TOKENS
            assert not set(c.token_ids) & set(vlm.image_token_ids)
        assert {"stop", "length"} == {c.finish_reason for c in completions}

    def test_texts_are_decoded_as_by_other_backends(
        self, vlm: Vlm, found: list[SampledList]
    ) -> None:
        for one in found:
            texts = vlm.tokenizer.batch_decode(
                [c.token_ids for c in one.completions],
                skip_special_tokens=True,
                clean_up_tokenization_spaces=False,
            )
            assert [c.text for c in one.completions] == texts

    def test_the_same_seeds_give_the_same_rows(
        self, backend: VllmBackend, found: list[SampledList]
    ) -> None:
        assert backend.sample(ROWS, SEEDS) == found
        others = drawn(backend.sample(ROWS[:1], [999]))
        assert others[0].completions != found[0].completions

    def test_greedy_answers_equal_those_of_transformers(
        self, model: Path, vlm: Vlm, backend: VllmBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As `perpo eval` decodes: one answer per prompt, no image placeholder, no seed."""
        monkeypatch.setattr(
            backend, "decoding", EvalConfig(max_new_tokens=MAX_NEW_TOKENS).decoding()
        )
        prompts = [encode_row(vlm, row, "processor") for row in ROWS]
        expected = greedy_decode(vlm, prompts, max_new_tokens=MAX_NEW_TOKENS)
        found = drawn(backend.sample(ROWS, SEEDS))
        assert [[c.token_ids for c in one.completions] for one in found] == [
            [answer.token_ids] for answer in expected
        ]
        assert [one.completions[0].text for one in found] == [answer.text for answer in expected]
        assert {len(answer.token_ids) for answer in expected} != {1}, "not only an end token"

    def test_token_counts_equal_training_at_every_image_size(
        self, backend: VllmBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One answer each: it is the prompts that are compared."""
        monkeypatch.setattr(backend, "decoding", replace(backend.decoding, num_samples=1))
        sizes = [(7 * i % 151 + 20, 13 * i % 149 + 20) for i in range(30)]
        rows = [make_row(f"{w}x{h}", w, "Where?", w, h) for w, h in sizes]
        drawn(backend.sample(rows, list(range(30))))  # a difference stops the run

    def test_an_image_with_a_refused_shape_fails_alone(self, backend: VllmBackend) -> None:
        """Only Qwen's models refuse any shape; the next row is sampled as without the ribbon."""
        ribbon = make_row("ribbon", 1, "Where?", 900, 4)
        found = backend.sample([ribbon, ROWS[0]], [1, SEEDS[0]])
        if backend.weightless.family.name.startswith("qwen"):
            assert isinstance(found[0], Failure) and "ratio" in found[0].reason
        else:
            drawn(found[:1])
        assert len(drawn(found[1:])[0].completions) == NUM_SAMPLES


@pytest.mark.parametrize("family", FURTHER)
def test_further_families_draw_from_what_training_computes(
    family: str, hub_model: HubModel, tmp_path: Path
) -> None:
    model = hub_model(family)
    vlm = load(model)
    with running(model, tmp_path) as backend:
        assert_drawn_from(vlm, backend.sample(ROWS, SEEDS))


def test_a_hybrid_draws_from_what_training_computes_in_bf16(
    hub_model: HubModel, tmp_path: Path
) -> None:
    """Qwen3.5, whose layers with a state have a kernel for bf16 alone on the CPU.

    transformers in bf16 differs from itself in fp32 by as much; another prompt changes far more.
    """
    model = hub_model("qwen3_5")
    rows = [ROWS[0], ROWS[1]]  # their answers, each behind the other's prompt, are the control
    setup = set_up(model, tmp_path)
    settings = {**setup.model_settings, "dtype": "bfloat16"}
    backend = VllmBackend(replace(setup, model_settings=settings))
    try:
        found = drawn(backend.sample(rows, SEEDS[:2]))
    finally:
        backend.close()
        gc.freeze()
    whole, half = load(model), load_vlm(resolve_model(str(model)), dtype="bfloat16", device="cpu")
    assert whole.shares_prefix and half.shares_prefix
    rounding = max(
        float((logps(whole, row, one) - logps(half, row, one)).abs().max())
        for row, one in zip(rows, found, strict=True)
    )
    for row, one in zip(rows, found, strict=True):
        assert worst_difference(half, row, one, "processor") < ALLOWED * rounding
    for row, one in zip(reversed(rows), found, strict=True):
        assert worst_difference(half, row, one, "processor") > ALLOWED * rounding


def test_images_that_see_both_ways_are_refused(hub_model: HubModel, tmp_path: Path) -> None:
    """This build computes Gemma 3's images as text: by up to 1.1 nats in an answer of 12 tokens."""
    with pytest.raises(ConfigError, match="in gemma3 models the tokens of an image see each other"):
        VllmBackend(set_up(hub_model("gemma3"), tmp_path))


@pytest.mark.parametrize(
    ("kind", "limits"),
    [
        ("qwen2_5_vl", ImageLimits(max_pixels=4 * 28**2)),
        ("llava_next", ImageLimits(max_tiles=2)),
    ],
)
def test_limits_on_the_image_size_are_those_of_training(
    kind: str, limits: ImageLimits, hub_model: HubModel, tmp_path: Path
) -> None:
    """vLLM's tokens are compared with training's for every prompt: a difference is an error."""
    model = hub_model(kind)
    resolved = replace(resolve_model(str(model)), limits=limits)
    usual, limited = load(model), load_vlm(resolved, dtype="float32", device="cpu")
    row = make_row("large", 1, "Where?", 200, 150)
    tokens = [encode_row(vlm, row, "processor").num_tokens for vlm in (usual, limited)]
    assert tokens[1] < tokens[0]
    backend = VllmBackend(replace(set_up(model, tmp_path), resolved=resolved))
    try:
        rows = [row, *ROWS]
        found = drawn(backend.sample(rows, list(range(len(rows)))))
        for row, one in zip(rows, found, strict=True):
            assert worst_difference(limited, row, one, "processor") < 1e-4, row["prompt_id"]
            assert one.resized == encode_row(limited, row, "processor").resized
    finally:
        backend.close()
        gc.freeze()


@pytest.fixture(scope="module")
def llava(hub_model: HubModel) -> Path:
    return hub_model("llava")


class TestEngine:
    """Behaviour that does not depend on the family."""

    @pytest.fixture(scope="class")
    def backend(
        self, llava: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[VllmBackend]:
        with running(llava, tmp_path_factory.mktemp("scratch"), preprocess="pad") as backend:
            yield backend

    @pytest.fixture(scope="class")
    def expected(self, backend: VllmBackend) -> list[SampledList]:
        return drawn(backend.sample(ROWS, SEEDS))

    def test_padded_images_equal_training(self, llava: Path, expected: list[SampledList]) -> None:
        assert_drawn_from(load(llava), expected, "pad")

    def test_a_prompt_that_cannot_be_read_fails_alone(
        self, backend: VllmBackend, tmp_path: Path
    ) -> None:
        missing = make_row("missing", 1, "Where?")
        missing["image"] = {"bytes": None, "path": str(tmp_path / "gone.png")}
        broken = make_row("broken", 1, "Where?")
        broken["image"] = {"bytes": b"no image", "path": None}
        places = make_row("places", 1, "Is <image> <image>?")
        too_long = make_row("too long", 1, "7" * 600)
        no_room = make_row("no room", 1, "7" * 480)
        # ROWS[0] and ROWS[1] share an image, which vLLM's caches must not lose or mix up.
        rows = [missing, too_long, ROWS[0], broken, places, no_room, ROWS[1]]
        results: dict[int, SampledList | Failure] = {}
        found = backend.sample(rows, list(range(7)), results.__setitem__)
        assert [results[index] for index in range(7)] == found
        reasons = [one.reason if isinstance(one, Failure) else None for one in found]
        assert reasons[2] is None
        assert reasons[6] is None
        words = {
            0: "cannot be read",
            3: "it is not an image in one of",
            4: "holds <image> more than once",
            1: "tokens, which leaves no room for an answer in the context of 512",
            5: "the prompt has 507 tokens and an answer at least 6: more than the context of 512",
        }
        for place, word in words.items():
            assert word in str(reasons[place])

    def test_every_prompt_is_reported_when_its_last_answer_is_drawn(
        self, backend: VllmBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One prompt runs at a time; the next is added only after the last was reported."""
        monkeypatch.setattr(backend, "window", 1)
        reported: list[int] = []
        unfinished: list[int] = []

        def on_done(index: int, result: SampledList | Failure) -> None:
            reported.append(index)
            unfinished.append(backend.llm.llm_engine.get_num_unfinished_requests())

        drawn(backend.sample(ROWS, SEEDS, on_done))
        assert reported == list(range(len(ROWS)))
        assert unfinished == [0] * len(ROWS)

    def test_images_are_opened_beside_the_thread_that_renders_prompts(
        self,
        backend: VllmBackend,
        expected: list[SampledList],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Prompt 0 is rendered only once the image of prompt 1 is being opened elsewhere."""
        second = threading.Event()
        real = vllm_backend.prompt_images

        def opened(row: Row) -> Any:
            if row is ROWS[0]:
                assert second.wait(10)
            elif row is ROWS[1]:
                second.set()
            return real(row)

        monkeypatch.setattr(vllm_backend, "prompt_images", opened)
        assert backend.sample(ROWS, SEEDS) == expected

    def test_a_later_prompt_with_another_length_than_in_training_stops_the_run(
        self,
        backend: VllmBackend,
        expected: list[SampledList],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """As if vLLM cut large images differently: the first prompts are equal."""
        real = vllm_backend._read

        def longer(vlm: Vlm, row: Row, *others: Any) -> Any:
            prompt = real(vlm, row, *others)
            if row is ROWS[2]:
                prompt.inputs["prompt_token_ids"].append(5)
            return prompt

        monkeypatch.setattr(vllm_backend, "_read", longer)
        with pytest.raises(
            ConfigError, match="vLLM and training read different tokens for prompt long"
        ) as caught:
            backend.sample(ROWS, SEEDS)
        length = encode_row(backend.weightless, ROWS[2], "pad").num_tokens
        assert f"{length + 1} tokens instead of {length}; from position {length}" in str(
            caught.value
        )
        monkeypatch.undo()
        assert (
            backend.sample(ROWS, SEEDS) == expected
        )  # the engine keeps nothing of the failed call

    def test_seeds_follow_the_prompt_not_its_neighbours(self, backend: VllmBackend) -> None:
        together = drawn(backend.sample(ROWS[:2], SEEDS[:2]))
        alone = drawn(backend.sample(ROWS[1:2], SEEDS[1:2]))
        assert [c.token_ids for c in alone[0].completions] == [
            c.token_ids for c in together[1].completions
        ]

    def test_more_prompts_than_the_engine_takes_at_once(
        self,
        backend: VllmBackend,
        expected: list[SampledList],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(backend, "window", 1)
        found = backend.sample(ROWS, SEEDS)
        for one, other in zip(drawn(found), expected, strict=True):
            assert [c.token_ids for c in one.completions] == [
                c.token_ids for c in other.completions
            ]

    def test_tokens_that_differ_from_training_stop_the_run(
        self, backend: VllmBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As if vLLM used its own template, with another end."""
        monkeypatch.setattr(backend, "compared", set())
        monkeypatch.setattr(
            "perpo_pipeline.inference.vllm_backend.render_prompt",
            lambda vlm, turns: f"USER: <image>\n{''.join(turns[-1].texts)} ASSISTANT: [",
        )
        with pytest.raises(ConfigError) as caught:
            backend.sample(ROWS[2:], SEEDS[2:])
        expected = encode_row(backend.weightless, ROWS[2], "pad").num_tokens
        lengths = f"{expected + 1} tokens instead of {expected}; from position {expected} on ["
        assert lengths in str(caught.value)
        shown = str(caught.value).splitlines()[1:3]
        assert shown[0].endswith("square?  ASSISTANT: ['")
        assert shown[1].endswith("square?  ASSISTANT:'")


def test_only_the_end_tokens_of_the_generation_config_count(llava: Path, tmp_path: Path) -> None:
    """The answers equal those of another engine with the same model and a harmless file."""
    hostile = shutil.copytree(llava, tmp_path / "hostile")
    file = hostile / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | HOSTILE))
    if llava not in FOUND:  # TestFamily has not run
        with running(llava, tmp_path / "a") as backend:
            FOUND[llava] = drawn(backend.sample(ROWS, SEEDS))
    with running(hostile, tmp_path / "b") as backend:
        assert drawn(backend.sample(ROWS, SEEDS)) == FOUND[llava]


def test_a_model_whose_images_vllm_cuts_differently_is_refused(
    hub_model: HubModel, tmp_path: Path
) -> None:
    """vLLM assumes that LLaVA-OneVision keeps the features of nine tiles; this one keeps two."""
    model = shutil.copytree(hub_model("llava_onevision"), tmp_path / "two")
    for name in ("config.json", "processor_config.json"):
        file = model / name
        file.write_text(file.read_text().replace("anyres_max_9", "anyres_max_2"))
    with (
        running(model, tmp_path / "scratch") as backend,
        pytest.raises(
            ConfigError,
            match=r"vLLM and training read different tokens for prompt short: .*tokens instead of",
        ),
    ):
        backend.sample(ROWS, SEEDS)


def test_configured_restrictions_act(llava: Path, tmp_path: Path) -> None:
    with running(llava, tmp_path, top_k=1, repetition_penalty=1.3) as backend:
        found = drawn(backend.sample(ROWS[:2], SEEDS[:2]))
    for one in found:
        assert len({c.token_ids for c in one.completions}) == 1


class TestAdapter:
    def check(
        self, model: Path, adapter: Path, scratch: Path, *, merged: bool
    ) -> list[SampledList | Failure]:
        """Sample with the adapter, served or merged as expected, and compare with training."""
        with running(model, scratch, adapter) as backend:
            assert (backend.lora is None) is merged
            assert bool(backend.notes()) is merged
            found = backend.sample(ROWS, SEEDS)
        assert_drawn_from(load(model, adapter), found)
        base = load(model)
        assert worst_difference(base, ROWS[0], drawn(found)[0], "processor") > 1e-2
        assert len(list((scratch / "merged").glob("[!.]*"))) == int(merged)
        return found

    @pytest.mark.parametrize("family", [f for f in FAMILIES if f != "llava_onevision"])
    def test_language_model_lora_is_served_with_its_base(
        self, family: str, hub_model: HubModel, tmp_path: Path
    ) -> None:
        model = hub_model(family)
        adapter = save_adapter(model, tmp_path / "adapter", ["language_model"], full=False)
        SERVED[model] = drawn(self.check(model, adapter, tmp_path / "scratch", merged=False))

    def test_merged_and_served_adapters_agree(
        self, llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        adapter = save_adapter(llava, tmp_path / "adapter", ["language_model"], full=False)
        if llava not in SERVED:  # the test above has not run
            SERVED[llava] = drawn(self.check(llava, adapter, tmp_path / "a", merged=False))
        unserved = replace(families.FAMILIES["llava"], lora_in_vllm=False)
        monkeypatch.setitem(families.FAMILIES, "llava", unserved)
        merged = drawn(self.check(llava, adapter, tmp_path / "b", merged=True))
        for one, other in zip(SERVED[llava], merged, strict=True):
            pairs = zip(one.completions, other.completions, strict=True)
            same = [(c, d) for c, d in pairs if c.token_ids == d.token_ids]
            assert len(same) >= NUM_SAMPLES - 1  # rounding may change one token in a thousand
            for c, d in same:
                assert c.sampler_logprob == pytest.approx(d.sampler_logprob, abs=1e-4)

    @pytest.mark.parametrize(
        ("family", "scope", "full"),
        [
            ("llava_onevision", ["language_model"], False),
            ("llava", ["language_model", "vision_tower"], False),
            ("qwen3_vl", ["language_model", "projector"], False),
            ("llava_next", ["projector"], True),
            ("qwen2_5_vl", ["language_model", "projector", "vision_tower"], True),
        ],
    )
    def test_other_adapters_are_merged_first(
        self, family: str, scope: list[str], full: bool, hub_model: HubModel, tmp_path: Path
    ) -> None:
        model = hub_model(family)
        adapter = save_adapter(model, tmp_path / "adapter", scope, full=full)
        self.check(model, adapter, tmp_path / "scratch", merged=True)
