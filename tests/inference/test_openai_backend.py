"""The openai backend against real HTTP servers on loopback: one like vLLM, one that is not."""

import hashlib
import io
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.utils import formatdate
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_openai_server import (
    END,
    IMAGE_ID,
    LONGEST_WAIT_S,
    MAX_NEW,
    UNANSWERED,
    WORDS,
    Answer,
    Json,
    Reply,
    Server,
    choice,
    drawn_ids,
    from_a_cache,
    ignores_n,
    make_like_vllm,
    picture,
    pictures,
    refuses_n,
    with_thoughts,
    without_ids,
)
from fuzzed_replies import BODIES
from hypothesis import HealthCheck, given, settings
from PIL import Image
from tiny_families import save_tiny_family
from tiny_models import noise_image, save_tiny_llava

from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.config.sample import SampleConfig
from perpo_pipeline.errors import ConfigError, MissingDependencyError
from perpo_pipeline.inference import openai_backend, openai_prompts
from perpo_pipeline.inference.backend import BackendSetup, Failure, Row, SampledList
from perpo_pipeline.inference.openai_backend import OpenAIBackend
from perpo_pipeline.vlm import openai_server
from perpo_pipeline.vlm.chat_settings import chat_settings
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.image_limits import NO_LIMITS, ImageLimits
from perpo_pipeline.vlm.images import load_image
from perpo_pipeline.vlm.loading import load_without_weights
from perpo_pipeline.vlm.prompts import encode_prompt

KEY = "sk-not-to-be-seen-4711"
NUM = 5


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def like_vllm(model_dir: Path) -> Answer:
    return make_like_vllm(model_dir)


@pytest.fixture(scope="module")
def plain() -> Answer:
    def answer(body: Json, number: int) -> Json:
        choices = [choice(i, drawn_ids(body["seed"], i)) for i in range(body["n"])]
        return without_ids({"choices": choices})

    return answer


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait only briefly, hide the user's own key, and load the processor once."""
    monkeypatch.setattr(openai_server, "FIRST_WAIT_S", 0.02)
    for name in openai_server.KEY_NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(openai_server, "LONGEST_WAIT_S", 0.2)
    monkeypatch.setattr(
        openai_prompts, "load_without_weights", lambda resolved, **_: _load_once(resolved)
    )


_load_once = cache(load_without_weights)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(answer: Answer, **settings: Any) -> Server:
        servers.append(Server(answer, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def connect(model_dir: Path, tmp_path: Path) -> Callable[..., OpenAIBackend]:
    def make(
        server: Server | str,
        preprocess: str = "processor",
        model: Path = model_dir,
        limits: ImageLimits = NO_LIMITS,
        model_settings: Json | None = None,
        **sample: Any,
    ) -> OpenAIBackend:
        config = ModelConfig(id=str(model), **(model_settings or {}))
        url = server if isinstance(server, str) else server.url
        settings: Json = {
            "backend": "openai",
            "num_samples": NUM,
            "max_new_tokens": MAX_NEW,
            "served_model": "tiny",
            "base_url": url,
            "concurrency": 4,
        }
        return OpenAIBackend(
            BackendSetup(
                model=config,
                resolved=replace(
                    resolve_model(str(model)), limits=limits, chat=chat_settings(config)
                ),
                model_settings={"preprocess": preprocess},
                settings=SampleConfig(**settings | sample),
                scratch=tmp_path,
            )
        )

    return make


def encoded_file(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def make_row(index: int, data: bytes | None = None, prompt: str | None = None) -> Row:
    data = encoded_file(noise_image(index)) if data is None else data
    return {
        "prompt_id": f"p{index}",
        "image": {"bytes": data, "path": None},
        "image_sha256": hashlib.sha256(data).hexdigest(),
        "prompt": prompt or f"where is square {index}?",
    }


def seed_of(index: int) -> int:
    return (1 << 62) + index * 1_000_003


def sample(backend: OpenAIBackend, num: int) -> list[SampledList | Failure]:
    return backend.sample([make_row(i) for i in range(num)], [seed_of(i) for i in range(num)])


def ids_of(result: SampledList | Failure) -> list[list[int]]:
    assert isinstance(result, SampledList), result
    return [list(completion.token_ids) for completion in result.completions]


def sent(index: int) -> int:
    """The seed that vLLM gets for row `index`: it adds up to N to it, which must fit in 63 bits."""
    return seed_of(index) >> 1


def expected(index: int) -> list[list[int]]:
    return [drawn_ids(sent(index), i) for i in range(NUM)]


def reason_of(result: SampledList | Failure) -> str:
    assert isinstance(result, Failure), result
    return result.reason


class TestVllm:
    def test_each_row_gets_the_completions_of_its_own_seed_in_order(
        self, serve: Any, connect: Any, like_vllm: Answer
    ) -> None:
        def first_is_last(body: Json, number: int) -> Any:
            time.sleep(0.3 if body["seed"] == sent(0) else 0)
            return like_vllm(body, number)

        backend = connect(serve(first_is_last))
        results = sample(backend, 6)
        assert [ids_of(r) for r in results] == [expected(i) for i in range(6)]
        assert backend.notes() == {}

    def test_a_completion_holds_text_reason_and_summed_logprob(
        self, serve: Any, connect: Any, like_vllm: Answer
    ) -> None:
        (result,) = sample(connect(serve(like_vllm), num_samples=20), 1)
        assert isinstance(result, SampledList)
        assert {c.finish_reason for c in result.completions} == {"stop", "length"}
        for completion in result.completions:
            ended = completion.token_ids[-1] == END
            assert completion.finish_reason == ("stop" if ended else "length")
            assert completion.sampler_logprob == -0.25 * len(completion.token_ids)
            spoken = completion.token_ids[:-1] if ended else completion.token_ids
            assert completion.text == WORDS.decode(spoken)
        assert result.resized == (32, 32)

    def test_the_request_overrides_the_whole_generation_config_of_the_server(
        self, serve: Any, connect: Any, like_vllm: Answer
    ) -> None:
        server = serve(like_vllm)
        sample(connect(server, temperature=0.7), 1)
        (body,) = server.bodies
        del body["messages"]
        assert body == {
            "model": "tiny",
            "n": NUM,
            "temperature": 0.7,
            "seed": sent(0),
            "top_p": 1.0,
            "max_tokens": MAX_NEW,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "logit_bias": {"3": -100.0},
            "stop_token_ids": [END],
            "ignore_eos": True,
            "add_special_tokens": True,
            "skip_special_tokens": True,
            "logprobs": True,
            "return_token_ids": True,
        }

    def test_configured_restrictions_are_sent(
        self, serve: Any, connect: Any, like_vllm: Answer
    ) -> None:
        server = serve(like_vllm)
        sample(connect(server, top_k=7, top_p=0.9, repetition_penalty=1.2), 1)
        sent = server.bodies[0]
        assert (sent["top_k"], sent["top_p"], sent["repetition_penalty"]) == (7, 0.9, 1.2)

    def test_the_image_comes_first_and_holds_the_pixels_of_training(
        self, serve: Any, connect: Any, like_vllm: Answer, model_dir: Path
    ) -> None:
        # Transparent, so that RGB is not a plain copy; wider than high, so that padding shows.
        noise = noise_image(3, 21, 8).convert("RGBA")
        noise.putalpha(noise_image(4, 21, 8).convert("L"))
        row = make_row(0, encoded_file(noise))
        upright = load_image(row["image"]["bytes"], where="test")
        for preprocess in ("processor", "pad"):
            server = serve(like_vllm)
            (result,) = connect(server, preprocess).sample([row], [1])
            assert isinstance(result, SampledList)
            (body,) = server.bodies
            (message,) = body["messages"]
            assert message["role"] == "user"
            assert [part["type"] for part in message["content"]] == ["image_url", "text"]
            assert message["content"][1]["text"] == row["prompt"]
            sent = np.asarray(picture(body))
            if preprocess == "processor":
                assert np.array_equal(sent, np.asarray(upright))
            else:  # 13 rows of margin, 6 above; CLIP's mean colour, rounded down
                assert sent.shape == (21, 21, 3)
                assert np.array_equal(sent[6:14], np.asarray(upright))
                assert (sent[:6] == (122, 116, 104)).all() and (sent[14:] == (122, 116, 104)).all()
            vlm = load_without_weights(resolve_model(str(model_dir)))
            trained = encode_prompt(vlm, upright, row["prompt"], preprocess=preprocess)
            served = encode_prompt(vlm, picture(body), row["prompt"])
            assert torch.equal(trained.tensors["pixel_values"], served.tensors["pixel_values"])

    def test_prompt_tokens_that_differ_from_training_stop_the_run_and_are_shown(
        self, serve: Any, connect: Any, like_vllm: Answer
    ) -> None:
        def with_a_system_turn(body: Json, number: int) -> Any:
            reply = like_vllm(body, number)
            assert isinstance(reply, dict)
            ids = reply["prompt_token_ids"]
            return reply | {"prompt_token_ids": [ids[0], 77, *ids[1:]]}

        with pytest.raises(ConfigError) as caught:
            sample(connect(serve(with_a_system_turn)), 1)
        what, server, training = caught.value.what.splitlines()
        assert re.search(
            r"prompt p0: .* from position 1 on \[77, (.*), \d+\] instead of \[\1, ", what
        )
        word = repr(WORDS.decode([77]))[1:-1]
        assert server.removeprefix("  the server: ").replace(word, "", 1) == training.removeprefix(
            "  training: "
        )
        assert "<image>*16" in training

    def test_a_truncated_prompt_is_noticed(
        self, serve: Any, connect: Any, like_vllm: Answer
    ) -> None:
        def cut(body: Json, number: int) -> Any:
            reply = like_vllm(body, number)
            assert isinstance(reply, dict)
            return reply | {"prompt_token_ids": reply["prompt_token_ids"][:-1]}

        with pytest.raises(ConfigError, match="read different tokens for prompt p0"):
            sample(connect(serve(cut)), 1)

    def test_other_tokens_of_the_first_prompt_are_noticed_even_if_their_number_is_equal(
        self, serve: Any, connect: Any, like_vllm: Answer
    ) -> None:
        def replaced(body: Json, number: int) -> Any:
            reply = like_vllm(body, number)
            assert isinstance(reply, dict)
            return reply | {"prompt_token_ids": [*reply["prompt_token_ids"][:-1], 77]}

        with pytest.raises(
            ConfigError, match=r"different tokens for prompt p0.* on \[77\] instead"
        ):
            sample(connect(serve(replaced)), 1)

    def test_a_later_prompt_of_another_length_is_noticed(
        self, serve: Any, connect: Any, like_vllm: Answer
    ) -> None:
        """For example a server with a smaller largest image: the first images may be equal."""

        def cut(body: Json, number: int) -> Any:
            reply = like_vllm(body, number)
            assert isinstance(reply, dict)
            ids = reply["prompt_token_ids"]
            if body["seed"] == sent(3):
                ids.remove(IMAGE_ID)
            return reply

        with pytest.raises(ConfigError, match="read different tokens for prompt p3") as caught:
            sample(connect(serve(cut), concurrency=1), 5)
        assert "<image>*15\\n" in str(caught.value) and "<image>*16\\n" in str(caught.value)

    def test_an_image_that_stands_further_on_is_sent_there_and_compared_in_full(
        self, serve: Any, connect: Any, like_vllm: Answer
    ) -> None:
        """A server that puts all images first reads as many tokens."""
        rows = [make_row(0), make_row(1, prompt="is <image> red?")]
        server = serve(like_vllm)
        assert [ids_of(r) for r in connect(server).sample(rows, [seed_of(0), seed_of(1)])] == [
            expected(0),
            expected(1),
        ]
        sent_parts = {len(body["messages"][0]["content"]): body for body in server.bodies}
        kinds = [part["type"] for part in sent_parts[3]["messages"][0]["content"]]
        assert kinds == ["text", "image_url", "text"]

        def images_first(body: Json, number: int) -> Any:
            body["messages"][0]["content"].sort(key=lambda part: part["type"] == "text")
            return like_vllm(body, number)

        with pytest.raises(ConfigError, match="read different tokens for prompt p1"):
            connect(serve(images_first), concurrency=1).sample(rows, [seed_of(0), seed_of(1)])

    def test_a_prompt_whose_image_the_template_would_move_is_never_sent(
        self, serve: Any, connect: Any, like_vllm: Answer, tmp_path: Path
    ) -> None:
        """LLaVA-OneVision's template writes all images first."""
        model = save_tiny_family("llava_onevision", tmp_path / "onevision")
        server = serve(like_vllm)
        backend = connect(server, model=model)
        (result,) = backend.sample([make_row(0, prompt="is <image> red?")], [1])
        assert "the chat template of a server puts it first" in reason_of(result)
        assert not server.bodies

    def test_a_template_with_a_date_gets_the_runs(
        self, serve: Any, connect: Any, like_vllm: Answer, model_dir: Path, tmp_path: Path
    ) -> None:
        model = Path(shutil.copytree(model_dir, tmp_path / "dated"))
        template = (model / "chat_template.jinja").read_text("utf-8")
        dated = "{% set date_string = date_string | default(strftime_now('%d %b %Y')) %}"
        (model / "chat_template.jinja").write_text(dated + template, "utf-8")
        server = serve(like_vllm)
        sample(connect(server, model=model), 1)
        assert server.bodies[0]["chat_template_kwargs"] == {"date_string": "26 Jul 2024"}
        with pytest.raises(ConfigError, match="would write that of its own clock"):
            connect(serve(like_vllm, owned_by="llamacpp"), model=model)

    def test_a_system_turn_and_arguments_are_sent_and_read_as_training_reads_them(
        self, serve: Any, connect: Any, model_dir: Path, tmp_path: Path, plain: Answer
    ) -> None:
        model = Path(shutil.copytree(model_dir, tmp_path / "switched"))
        template = (model / "chat_template.jinja").read_text("utf-8")
        ending = "{% if enable_thinking is false %}{{ '<no thought>' }}{% endif %}"
        (model / "chat_template.jinja").write_text(template + ending, "utf-8")
        settings = {"system_prompt": "Be kind.", "chat_template_kwargs": {"enable_thinking": False}}
        server = serve(make_like_vllm(model))
        backend = connect(server, model=model, model_settings=settings)
        assert all(isinstance(one, SampledList) for one in sample(backend, 2))
        body = server.bodies[0]
        assert body["messages"][0] == {"role": "system", "content": "Be kind."}
        assert [message["role"] for message in body["messages"]] == ["system", "user"]
        assert body["chat_template_kwargs"] == {"enable_thinking": False}
        assert backend.notes() == {}
        with pytest.raises(ConfigError, match="may ignore enable_thinking"):
            connect(serve(plain, owned_by="llamacpp"), model=model, model_settings=settings)

    def test_a_server_that_leaves_the_system_turn_out_is_found_by_its_tokens(
        self, serve: Any, connect: Any, model_dir: Path
    ) -> None:
        like_vllm = make_like_vllm(model_dir)

        def forgetful(body: Json, number: int) -> Json:
            return like_vllm({**body, "messages": body["messages"][-1:]}, number)

        backend = connect(serve(forgetful), model_settings={"system_prompt": "Be kind."})
        with pytest.raises(ConfigError, match="the server and training read different tokens"):
            sample(backend, 1)

    def test_a_server_whose_tokens_are_unknown_is_noted_with_the_system_turn(
        self, serve: Any, connect: Any, plain: Answer
    ) -> None:
        """Of vLLM this is known only after an answer, of others before."""
        for owner, is_known in (("llamacpp", True), ("vllm", False)):
            backend = connect(
                serve(plain, owned_by=owner), model_settings={"system_prompt": "Be kind."}
            )
            assert ("token_ids" in backend.notes()) == is_known
            sample(backend, 1)
            assert "may leave model.system_prompt out" in backend.notes()["token_ids"]
        usual = connect(serve(plain, owned_by="llamacpp"))
        assert "system_prompt" not in usual.notes()["token_ids"]

    def test_an_argument_without_effect_is_noted(
        self, serve: Any, connect: Any, like_vllm: Answer
    ) -> None:
        server = serve(like_vllm)
        backend = connect(server, model_settings={"chat_template_kwargs": {"mood": 1}})
        sample(backend, 1)
        assert "chat_template_kwargs.mood changes nothing" in backend.notes()["chat_template"]
        assert "chat_template_kwargs" not in server.bodies[0]

    def test_answers_of_an_old_vllm_without_token_ids_are_tokenised_and_noted(
        self, serve: Any, connect: Any, plain: Answer, capfd: pytest.CaptureFixture[str]
    ) -> None:
        backend = connect(serve(plain))
        assert backend.notes() == {}
        assert all(isinstance(result, SampledList) for result in sample(backend, 3))
        assert "tokenised from their text" in backend.notes()["token_ids"]
        assert not capfd.readouterr().err  # the stage prints the notes

    @pytest.mark.parametrize("temperature", [0.005, 2.5])
    def test_a_temperature_that_vllm_changes_or_refuses_is_refused_first(
        self, serve: Any, connect: Any, like_vllm: Answer, temperature: float
    ) -> None:
        with pytest.raises(ConfigError, match="temperature"):
            connect(serve(like_vllm), temperature=temperature)

    def test_the_resized_size_is_returned_and_an_image_that_the_model_refuses_fails_alone(
        self, serve: Any, connect: Any, tmp_path: Path
    ) -> None:
        model = save_tiny_family("qwen2_5_vl", tmp_path / "qwen")
        reply = make_like_vllm(model)
        server = serve(lambda body, number: reply(body | {"n": 0}, number) | one_stop(model))
        ribbon, image = noise_image(1, 900, 3), noise_image(2, 90, 61)
        rows = [make_row(i, encoded_file(one)) for i, one in enumerate((ribbon, image))]
        refused, good = connect(server, model=model, num_samples=1).sample(rows, [1, 2])
        assert "ratio" in reason_of(refused) and len(server.bodies) == 1
        assert isinstance(good, SampledList)
        trained = encode_prompt(load_without_weights(resolve_model(str(model))), image, "where?")
        assert good.resized == trained.resized != image.size


def one_stop(model_dir: Path) -> Json:
    end = load_without_weights(resolve_model(str(model_dir))).eos_token_ids[0]
    return {"choices": [choice(0, [5, end], finish_reason="stop")]}


class TestImageSize:
    """Limits on pixels: the image is resized before it is sent. Tiles are the server's affair."""

    limits = ImageLimits(max_pixels=4 * 28**2)

    @pytest.fixture(scope="class")
    def qwen(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return save_tiny_family("qwen2_5_vl", tmp_path_factory.mktemp("qwen"))

    @staticmethod
    def rows() -> list[Row]:
        return [make_row(i, encoded_file(noise_image(i, 150 + 9 * i, 90))) for i in range(3)]

    def test_a_vllm_with_wider_limits_reads_the_tokens_of_training(
        self, serve: Any, connect: Any, qwen: Path
    ) -> None:
        server = serve(make_like_vllm(qwen))
        backend = connect(server, model=qwen, limits=self.limits)
        backend.sample(self.rows(), [1, 2, 3])  # other tokens than training's would be an error
        sizes = [picture(body).size for body in server.bodies]
        assert max(width * height for width, height in sizes) <= 4 * 28**2
        assert not any("mm_processor_kwargs" in body for body in server.bodies)  # vLLM refuses it

    def test_a_vllm_with_narrower_limits_is_refused_with_the_option_to_start_it_with(
        self, serve: Any, connect: Any, qwen: Path
    ) -> None:
        """The run allows more pixels than the model's own processor."""
        limits = ImageLimits(max_pixels=20 * 28**2)
        backend = connect(serve(make_like_vllm(qwen)), model=qwen, limits=limits)
        with pytest.raises(ConfigError, match="read different tokens") as error:
            backend.sample([make_row(1, encoded_file(noise_image(1, 300, 200)))], [1])
        assert error.value.fix is not None
        assert error.value.fix.startswith(
            "model.max_pixels: 15680: start vLLM with --mm-processor-kwargs "
            """'{"use_fast": false, "size": {"shortest_edge": 1568, "longest_edge": 15680}}'."""
        )

    def test_another_server_gets_the_pixels_of_training(
        self, serve: Any, connect: Any, qwen: Path, plain: Answer
    ) -> None:
        server = serve(plain, owned_by="someone")
        backend = connect(server, model=qwen, limits=self.limits)
        row = self.rows()[0]
        backend.sample([row], [1])
        found, original = picture(server.bodies[0]), load_image(row["image"]["bytes"], where="row")
        vlm = load_without_weights(replace(resolve_model(str(qwen)), limits=self.limits))
        usual = load_without_weights(resolve_model(str(qwen)))
        expected = encode_prompt(vlm, original, "Where?")
        assert found.size == expected.resized != original.size
        for reader in (vlm, usual):  # also where the server knows no limit
            encoded = encode_prompt(reader, found, "Where?")
            assert torch.equal(encoded.tensors["pixel_values"], expected.tensors["pixel_values"])
        assert "model.max_pixels: 3136" in backend.notes()["image_size"]

    def test_a_server_must_have_the_tiles_itself(
        self, serve: Any, connect: Any, tmp_path: Path, plain: Answer
    ) -> None:
        model = save_tiny_family("llava_next", tmp_path / "next")
        limits = ImageLimits(max_tiles=2)
        other = connect(serve(plain, owned_by="someone"), model=model, limits=limits)
        assert "image_grid_pinpoints: [[24, 48], [48, 24]]" in other.notes()["image_size"]
        like_vllm = connect(serve(make_like_vllm(model)), model=model, limits=limits)
        with pytest.raises(ConfigError, match="read different tokens") as error:
            like_vllm.sample([make_row(1, encoded_file(noise_image(1, 200, 190)))], [1])
        assert "a copy of the model's folder with image_grid_pinpoints" in str(error.value.fix)


class TestOtherServer:
    def test_only_fields_of_the_protocol_are_sent(
        self, serve: Any, connect: Any, plain: Answer
    ) -> None:
        server = serve(plain, owned_by="someone")
        sample(connect(server, top_p=0.8), 2)
        for body in server.bodies:
            assert set(body) == {
                "model",
                "messages",
                "n",
                "temperature",
                "top_p",
                "seed",
                "max_tokens",
                "logprobs",
            }
            assert body["top_p"] == 0.8

    def test_a_seed_fits_31_bits_and_differs_between_prompts(
        self, serve: Any, connect: Any, plain: Answer
    ) -> None:
        server = serve(plain, owned_by="someone")
        seeds = [2**63 - 1, 2**62, 2**33, 5 * 2**50]
        connect(server).sample([make_row(i) for i in range(4)], seeds)
        sent = [body["seed"] for body in server.bodies]
        assert len(set(sent)) == 4 and all(0 <= seed < 2**31 for seed in sent)

    def test_the_text_is_tokenised_with_an_end_token_if_the_answer_stopped(
        self, serve: Any, connect: Any, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def answer(body: Json, number: int) -> Json:
            ended = choice(0, [5, END], message={"content": "[0.12, 0.34]"})
            cut = choice(1, [5], message={"content": "[0.12, 0"}, finish_reason="length")
            return without_ids({"choices": [cut, ended]})

        backend = connect(serve(answer, owned_by="someone"), num_samples=2)
        assert "tokenised from their text" in backend.notes()["token_ids"]
        results = sample(backend, 3)
        for result in results:
            stopped, cut = ids_of(result)
            assert stopped[-1] == END and END not in stopped[:-1]
            assert WORDS.decode(stopped[:-1]) == "[0.12, 0.34]"
            assert END not in cut and WORDS.decode(cut) == "[0.12, 0"
            assert 1 not in stopped + cut  # no begin token
        assert list(backend.notes()) == ["token_ids"]
        assert not capfd.readouterr().err  # the stage prints the notes

    @pytest.mark.parametrize("counted", [None, 1])
    def test_a_cut_of_the_servers_own_is_not_one_at_max_new_tokens(
        self, serve: Any, connect: Any, counted: int | None
    ) -> None:
        """Whether the server counts its tokens or not."""
        usage = {"usage": {"completion_tokens": counted}}

        def answer(body: Json, number: int) -> Json:
            cut = choice(0, [5], message={"content": "["}, finish_reason="length")
            return without_ids({"choices": [cut]}) | usage

        backend = connect(serve(answer, owned_by="someone"), num_samples=1)
        assert "after 1 tokens, and max_new_tokens is 6: start it without" in reason_of(
            sample(backend, 1)[0]
        )
        usage["usage"]["completion_tokens"] = MAX_NEW
        assert isinstance(sample(backend, 1)[0], SampledList)

    def test_prompt_and_answer_must_fit_the_models_context_whatever_the_server_does(
        self, serve: Any, connect: Any
    ) -> None:
        """A server that truncates answers another prompt. The tiny model's context is 512."""

        def answer(body: Json, number: int) -> Json:
            ended = choice(0, [5, END], message={"content": "7" * 40})
            return without_ids({"choices": [ended]})

        server = serve(answer, owned_by="someone")
        rows = [make_row(0, prompt="7" * 600), make_row(1, prompt="7" * 450), make_row(2)]
        long, tight, good = connect(server, num_samples=1).sample(rows, [1, 2, 3])
        assert "tokens, which leaves no room for an answer in the context of 512" in reason_of(long)
        assert "an answer at least 41: more than the context of 512" in reason_of(tight)
        assert isinstance(good, SampledList)
        assert len(server.bodies) == 2, "the first is not sent"

    def test_tokens_that_only_pixels_tell_are_counted_with_them(
        self, serve: Any, connect: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(openai_prompts, "count_prompt_tokens", lambda *_: None)
        backend = connect(serve(one_choice(), owned_by="someone"), num_samples=1)
        (result,) = backend.sample([make_row(0, prompt="7" * 600)], [1])
        assert "leaves no room" in reason_of(result)

    def test_text_that_looks_like_special_tokens_stays_text(self, serve: Any, connect: Any) -> None:
        said = "a</s>b<image><pad>"

        def answer(body: Json, number: int) -> Json:
            return without_ids({"choices": [choice(0, [5, END], message={"content": said})]})

        (result,) = sample(connect(serve(answer, owned_by="someone"), num_samples=1), 1)
        (ids,) = ids_of(result)
        assert ids[-1] == END and not {0, 1, END, IMAGE_ID} & set(ids[:-1])
        assert WORDS.decode(ids[:-1]) == said

    def test_logprobs_may_be_missing(self, serve: Any, connect: Any) -> None:
        def answer(body: Json, number: int) -> Json:
            first = choice(0, [5, END], logprobs=None)
            second = choice(1, [5, END], logprobs={"content": None})
            third = choice(2, [5, END], logprobs={"content": [{"token": "x"}]})
            return without_ids({"choices": [first, second, third]})

        (result,) = sample(connect(serve(answer, owned_by="someone"), num_samples=3), 1)
        assert isinstance(result, SampledList)
        assert [c.sampler_logprob for c in result.completions] == [None, None, None]

    @pytest.mark.parametrize(
        ("setting", "name"), [({"top_k": 50}, "top_k"), ({"repetition_penalty": 1.1}, "repetition")]
    )
    def test_a_setting_the_protocol_lacks_is_refused(
        self, serve: Any, connect: Any, plain: Answer, setting: Json, name: str
    ) -> None:
        server = serve(plain, owned_by="someone")
        with pytest.raises(ConfigError, match=name):
            connect(server, **setting)
        assert not server.bodies

    def test_a_server_without_a_list_of_models_is_used(
        self, serve: Any, connect: Any, plain: Answer
    ) -> None:
        server = serve(plain)
        server.models = Reply(404, {"error": {"message": "Not Found"}})
        backend = connect(server)
        assert isinstance(sample(backend, 1)[0], SampledList)
        assert "n" in server.bodies[0] and "top_k" not in server.bodies[0]

    def test_max_completion_tokens_is_used_if_a_server_insists(
        self, serve: Any, connect: Any, plain: Answer
    ) -> None:
        said = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."

        def answer(body: Json, number: int) -> Any:
            if "max_tokens" in body:
                return Reply(400, {"error": {"message": said}})
            return plain(body, number)

        server = serve(answer, owned_by="someone")
        results = sample(connect(server, concurrency=2), 6)
        assert all(isinstance(result, SampledList) for result in results)
        accepted = [body for body in server.bodies if "max_tokens" not in body]
        assert [body["max_completion_tokens"] for body in accepted] == [MAX_NEW] * 6
        assert len(server.bodies) <= 6 + 2  # learnt once, by the first concurrent requests

    def test_a_refusal_that_only_names_max_completion_tokens_changes_nothing(
        self, serve: Any, connect: Any, plain: Answer
    ) -> None:
        """As vLLM's of a prompt that is too long for its context."""
        said = "'max_tokens' or 'max_completion_tokens' is too large: 6"

        def answer(body: Json, number: int) -> Any:
            is_long = "square 0" in json.dumps(body)
            return Reply(400, {"error": {"message": said}}) if is_long else plain(body, number)

        server = serve(answer, owned_by="someone")
        backend = connect(server)
        assert "is too large" in reason_of(sample(backend, 1)[0])
        before = len(server.bodies)
        (good,) = backend.sample([make_row(1)], [seed_of(1)])
        assert isinstance(good, SampledList)
        assert [body["max_tokens"] for body in server.bodies[before:]] == [MAX_NEW]

    @pytest.mark.parametrize("status", [400, 422])
    def test_logprobs_are_dropped_and_noted_if_a_server_refuses_them(
        self,
        serve: Any,
        connect: Any,
        plain: Answer,
        capfd: pytest.CaptureFixture[str],
        status: int,
    ) -> None:
        def answer(body: Json, number: int) -> Any:
            if "logprobs" in body:
                return Reply(status, {"error": {"message": "logprobs is not supported"}})
            reply = plain(body, number)
            assert isinstance(reply, dict)
            return {"choices": [one | {"logprobs": None} for one in reply["choices"]]}

        server = serve(answer, owned_by="someone")
        backend = connect(server, concurrency=2)
        for result in sample(backend, 6):
            assert isinstance(result, SampledList)
            assert {c.sampler_logprob for c in result.completions} == {None}
        assert len(server.bodies) <= 6 + 2  # learnt once, by the first concurrent requests
        assert "sampler_logprob is empty" in backend.notes()["logprobs"]
        assert not capfd.readouterr().err  # the stage prints the notes

    def test_a_refusal_that_only_quotes_logprobs_changes_nothing(
        self, serve: Any, connect: Any, plain: Answer
    ) -> None:
        def answer(body: Json, number: int) -> Any:
            if "square 0" in json.dumps(body):
                return Reply(422, {"detail": [{"msg": "too long", "input": {"logprobs": True}}]})
            return plain(body, number)

        server = serve(answer, owned_by="someone")
        backend = connect(server, concurrency=1)
        (refused,) = sample(backend, 1)
        _, good = sample(backend, 2)  # the rows are read side by side: either is sent first
        assert "too long" in reason_of(refused) and isinstance(good, SampledList)
        (asked,) = [body for body in server.bodies if "square 1" in json.dumps(body)]
        assert "logprobs" in asked
        assert "logprobs" not in backend.notes()


class TestThoughts:
    """Servers that take thoughts out of the content, as with vLLM's --reasoning-parser."""

    @pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
    def test_an_answer_without_its_thoughts_is_refused(
        self, serve: Any, connect: Any, plain: Answer, name: str
    ) -> None:
        def answer(body: Json, number: int) -> Json:
            return with_thoughts(plain(body, number), "It is left. Or not?", name)

        server = serve(answer, owned_by="someone")
        with pytest.raises(ConfigError, match=rf"message.{name}: 'It is left. Or not\?'") as caught:
            sample(connect(server, concurrency=1), 4)
        assert "--reasoning-parser" in str(caught.value) and server.url in str(caught.value)
        assert len(server.bodies) == 1

    @pytest.mark.parametrize(
        ("content", "thoughts"), [("[0.1, 0.2]", "Hm."), (None, "Hm."), (None, "")]
    )
    def test_token_ids_give_the_text_as_it_was_drawn(
        self, serve: Any, connect: Any, like_vllm: Answer, content: str | None, thoughts: str
    ) -> None:
        def answer(body: Json, number: int) -> Json:
            reply = like_vllm(body, number)
            assert isinstance(reply, dict)
            for made in reply["choices"]:
                made["message"]["content"] = content
            return with_thoughts(reply, thoughts)

        (result,) = sample(connect(serve(answer)), 1)
        assert ids_of(result) == expected(0)
        assert isinstance(result, SampledList)
        for completion in result.completions:
            assert completion.text == WORDS.decode(completion.token_ids, skip_special_tokens=True)

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}]}, "_details"),
            (
                {"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "a"}]},
                "message.content",
            ),
        ],
    )
    def test_thoughts_in_other_fields_are_noticed(
        self, serve: Any, connect: Any, plain: Answer, change: Json, named: str
    ) -> None:
        def answer(body: Json, number: int) -> Json:
            reply = plain(body, number)
            assert isinstance(reply, dict)
            reply["choices"][-1]["message"].update(change)
            return reply

        with pytest.raises(ConfigError, match=named):
            sample(connect(serve(answer, owned_by="someone")), 1)

    def test_thoughts_that_the_server_only_counts_are_noticed(
        self, serve: Any, connect: Any, like_vllm: Answer
    ) -> None:
        """They may be in the content, or known by token ids."""
        content: list[str] = ["[0.1, 0.2]"]
        usage = {"completion_tokens": 90, "completion_tokens_details": {"reasoning_tokens": 70}}

        def answer(body: Json, number: int) -> Json:
            made = [choice(i, [5, END], message={"content": content[0]}) for i in range(body["n"])]
            return without_ids({"choices": made}) | {"usage": usage}

        server = serve(answer, owned_by="someone")
        with pytest.raises(ConfigError, match="counts 70 tokens of thoughts"):
            sample(connect(server), 1)
        content[0] = "left?</think>[0.1, 0.2]"
        assert isinstance(sample(connect(server), 1)[0], SampledList)

        def with_ids(body: Json, number: int) -> Json:
            reply = like_vllm(body, number)
            assert isinstance(reply, dict)
            return reply | {"usage": usage}

        assert ids_of(sample(connect(serve(with_ids)), 1)[0]) == expected(0)

    @pytest.mark.parametrize(
        "usage",
        [None, 7, {}, {"completion_tokens_details": None}, {"completion_tokens_details": 3}],
    )
    def test_a_usage_without_thoughts_is_no_matter(
        self, serve: Any, connect: Any, plain: Answer, usage: Any
    ) -> None:
        def answer(body: Json, number: int) -> Json:
            reply = plain(body, number)
            assert isinstance(reply, dict)
            return reply | {"usage": usage}

        assert isinstance(sample(connect(serve(answer, owned_by="someone")), 1)[0], SampledList)

    def test_a_content_of_text_parts_is_their_text(self, serve: Any, connect: Any) -> None:
        parts = [{"type": "text", "text": "[0.1, "}, {"type": "text", "text": "0.2]"}]

        def answer(body: Json, number: int) -> Json:
            return without_ids({"choices": [choice(0, [5, END], message={"content": parts})]})

        (result,) = sample(connect(serve(answer, owned_by="someone"), num_samples=1), 1)
        assert isinstance(result, SampledList) and result.completions[0].text == "[0.1, 0.2]"

    @pytest.mark.parametrize("nothing", [None, "", []])
    def test_an_empty_field_for_thoughts_is_no_thought(
        self, serve: Any, connect: Any, plain: Answer, nothing: Any
    ) -> None:
        def answer(body: Json, number: int) -> Json:
            return with_thoughts(plain(body, number), nothing)

        assert isinstance(sample(connect(serve(answer, owned_by="someone")), 1)[0], SampledList)

    def test_thoughts_in_the_content_stay_in_the_completion(self, serve: Any, connect: Any) -> None:
        said = "Maybe [0.0, 0.0].\n</think>\n\n[0.1, 0.2]"

        def answer(body: Json, number: int) -> Json:
            return without_ids({"choices": [choice(0, [5, END], message={"content": said})]})

        (result,) = sample(connect(serve(answer, owned_by="someone"), num_samples=1), 1)
        assert isinstance(result, SampledList)
        assert result.completions[0].text == said
        assert WORDS.decode(result.completions[0].token_ids[:-1]) == said


class TestServersThatIgnoreN:
    @pytest.mark.parametrize("kind", [ignores_n, refuses_n])
    def test_each_completion_gets_a_request_with_a_seed_of_its_own(
        self, serve: Any, connect: Any, plain: Answer, kind: Callable[[Answer], Answer]
    ) -> None:
        server = serve(kind(plain), owned_by="someone")
        backend = connect(server, concurrency=1)
        results = sample(backend, 3)
        assert [len(ids_of(result)) for result in results] == [NUM] * 3
        if kind is ignores_n:
            assert [body["n"] for body in server.bodies] == [NUM, *[1] * 14]
            assert "returned 1 of 5 choices" in backend.notes()["single_requests"]
        else:
            assert [body["n"] for body in server.bodies] == [NUM, *[1] * 15]
            assert "refuses to return 5 choices" in backend.notes()["single_requests"]
        asked = {(json.dumps(body["messages"]), body["seed"]) for body in server.bodies}
        assert len(asked) == 3 * NUM
        assert sample(backend, 3) == results  # the same seeds when it is known from the start

    def test_another_refusal_stays_the_reason(
        self, serve: Any, connect: Any, plain: Answer
    ) -> None:
        def answer(body: Json, number: int) -> Any:
            return Reply(400, f"a prompt of n = {body['n']} tokens is too long")

        result = sample(connect(serve(answer, owned_by="someone")), 1)[0]
        assert f"n = {NUM} tokens is too long" in reason_of(result)


class TestEqualCompletions:
    def test_a_server_that_answers_from_a_cache_is_reported_with_figures(
        self, serve: Any, connect: Any
    ) -> None:
        backend = connect(serve(from_a_cache, owned_by="someone"))
        sample(backend, 1)
        assert "equal_completions" not in backend.notes()  # one prompt may be certain
        sample(backend, 3)
        note = backend.notes()["equal_completions"]
        assert "all completions are equal for 4 of 4 prompts" in note and backend.server.url in note
        sample(backend, 2)
        assert backend.notes()["equal_completions"] == note
        sample(backend, 2)
        assert "8 of 8 prompts" in backend.notes()["equal_completions"]

    def test_a_server_that_also_ignores_n_is_reported_at_its_first_list(
        self, serve: Any, connect: Any
    ) -> None:
        backend = connect(serve(ignores_n(from_a_cache), owned_by="someone"))
        sample(backend, 1)
        assert "are equal for 1 of 1 prompts" in backend.notes()["equal_completions"]

    def test_lists_that_differ_or_hold_one_completion_are_no_sign(
        self, serve: Any, connect: Any, plain: Answer
    ) -> None:
        for answer, num in ((plain, NUM), (from_a_cache, 1)):
            backend = connect(serve(answer, owned_by="someone"), num_samples=num)
            sample(backend, 4)
            assert "equal_completions" not in backend.notes()


class TestOnDone:
    def test_each_row_is_reported_with_its_result_as_soon_as_it_ends(
        self, serve: Any, connect: Any, like_vllm: Answer
    ) -> None:
        """The first row's answer waits until all others are done; the third row has no image."""
        results: dict[int, SampledList | Failure] = {}
        others = threading.Event()

        def first_is_last(body: Json, number: int) -> Any:
            if body["seed"] == sent(0):
                others.wait(10)  # seconds, in case the others never end
            return like_vllm(body, number)

        def on_done(index: int, result: SampledList | Failure) -> None:
            assert index not in results
            results[index] = result
            if len(results) == 5:
                others.set()

        rows = [make_row(i, b"broken" if i == 2 else None) for i in range(6)]
        found = connect(serve(first_is_last)).sample(rows, [seed_of(i) for i in range(6)], on_done)
        assert list(results)[-1] == 0
        assert [results[index] for index in range(6)] == found
        assert [isinstance(result, Failure) for result in found] == [i == 2 for i in range(6)]


class TestTrouble:
    def test_requests_to_a_busy_or_failing_server_are_repeated(
        self, serve: Any, connect: Any, like_vllm: Answer
    ) -> None:
        trouble: list[Any] = [Reply(503, "starting"), Reply(500, {"error": "?"}), None, Reply(408)]

        def answer(body: Json, number: int) -> Any:
            return trouble[number - 1] if number <= len(trouble) else like_vllm(body, number)

        server = serve(answer)
        results = sample(connect(server), 3)
        assert [ids_of(r) for r in results] == [expected(i) for i in range(3)]
        assert sorted(server.seen.values()) == [5, 5, 5]
        assert len({json.dumps(body) for body in server.bodies}) == 3  # the same request each time

    def test_an_error_in_the_body_of_a_200_is_what_its_code_says(
        self, serve: Any, connect: Any, plain: Answer
    ) -> None:
        """As OpenRouter sends it."""
        busy = {"error": {"message": "Rate limit exceeded", "code": 429}}
        reply: list[Any] = [busy]

        def answer(body: Json, number: int) -> Any:
            return plain(body, number) if reply[0] is busy and number == 3 else reply[0]

        server = serve(answer, owned_by="someone")
        backend = connect(server)
        assert isinstance(sample(backend, 1)[0], SampledList) and len(server.bodies) == 3
        reply[0] = {"error": {"message": "no such thing", "code": "odd"}}
        assert "refused the request (HTTP 400: no such thing)" in reason_of(sample(backend, 1)[0])
        reply[0] = {"error": {"message": "flagged by moderation", "code": 403}}
        assert "refused the request (HTTP 400: flagged" in reason_of(sample(backend, 1)[0])
        reply[0] = {"error": {"message": "no credits", "code": 402}}
        with pytest.raises(ConfigError, match="a request without a key"):
            sample(backend, 1)

    def test_a_wait_that_the_server_asks_for_is_respected(
        self, serve: Any, connect: Any, like_vllm: Answer
    ) -> None:
        def answer(body: Json, number: int) -> Any:
            return Reply(429, "slow down", Retry_After="1") if number == 1 else like_vllm(body, 2)

        server = serve(answer)
        assert ids_of(sample(connect(server), 1)[0]) == expected(0)
        assert server.at[1] - server.at[0] >= 1

    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            (None, None),
            ("", None),
            ("soon", None),
            ("nan", None),
            ("inf", None),
            ("0", 0),
            ("-5", 0),
            ("2.5", 2.5),
            ("1e9", 300),
            ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ],
    )
    def test_a_retry_after_is_read(self, value: str | None, seconds: float | None) -> None:
        assert openai_server._retry_after(value) == seconds

    def test_a_retry_after_may_be_a_date(self) -> None:
        found = openai_server._retry_after(formatdate(time.time() + 60, usegmt=True))
        assert found == pytest.approx(60, abs=5)

    def test_a_prompt_that_never_succeeds_fails_alone(
        self, serve: Any, connect: Any, like_vllm: Answer
    ) -> None:
        def answer(body: Json, number: int) -> Any:
            if body["seed"] == sent(1):
                return Reply(500, {"error": {"message": "out of cheese"}})
            return like_vllm(body, number)

        server = serve(answer)
        good, bad, also_good = sample(connect(server), 3)
        assert (ids_of(good), ids_of(also_good)) == (expected(0), expected(2))
        assert "6 tries" in reason_of(bad) and "HTTP 500: out of cheese" in reason_of(bad)
        assert sorted(server.seen.values()) == [1, 1, 6]

    @pytest.mark.parametrize("status", [400, 413, 422])
    def test_a_refused_prompt_fails_alone_with_the_servers_message_and_is_not_repeated(
        self, serve: Any, connect: Any, like_vllm: Answer, status: int
    ) -> None:
        def answer(body: Json, number: int) -> Any:
            if body["seed"] == sent(0):
                return Reply(status, {"error": {"message": "the prompt is\ntoo long\x1b[2J"}})
            return like_vllm(body, number)

        server = serve(answer)
        bad, good = sample(connect(server), 2)
        assert f"HTTP {status}: the prompt is too long [2J" in reason_of(bad)
        assert ids_of(good) == expected(1)
        assert sorted(server.seen.values()) == [1, 1]

    def test_a_server_that_restarts_loses_and_repeats_no_answer(
        self, serve: Any, connect: Any, like_vllm: Answer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(openai_server, "FIRST_WAIT_S", 0.1)
        is_down, restarted = threading.Event(), threading.Event()

        def restart() -> None:
            port = server.http.server_port
            server.stop()
            is_down.set()
            time.sleep(0.4)
            server.start(port)
            restarted.set()

        def answer(body: Json, number: int) -> Any:
            if body["seed"] == sent(5) and number == 1:
                threading.Thread(target=restart).start()
                is_down.wait(10)
                return None
            return like_vllm(body, number)

        server = serve(answer)
        results = sample(connect(server, concurrency=2), 12)
        # The last answer can be here before the thread that started the server again goes on.
        assert restarted.wait(10)
        assert [ids_of(r) for r in results] == [expected(i) for i in range(12)]

    def test_a_server_that_goes_away_ends_the_run(
        self,
        serve: Any,
        connect: Any,
        like_vllm: Answer,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(openai_server, "LONGEST_WAIT_S", 0.02)
        server = serve(like_vllm)
        backend = connect(server)
        server.stop()
        with pytest.raises(ConfigError, match="cannot be reached") as caught:
            sample(backend, 6)
        assert server.url in str(caught.value)
        assert capfd.readouterr().err.count("waiting for") == 1
        server.start(server.http.server_port)

    def test_a_server_that_never_ran_is_reported_at_once(
        self, serve: Any, connect: Any, like_vllm: Answer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(openai_server, "FIRST_WAIT_S", 60.0)
        server = serve(like_vllm)
        server.http.server_close()
        with pytest.raises(ConfigError, match="cannot be reached") as caught:
            connect(server)
        assert server.url in str(caught.value) and "base_url" in str(caught.value)

    def test_concurrent_requests_are_bounded_and_the_bound_is_used(
        self, serve: Any, connect: Any, like_vllm: Answer
    ) -> None:
        together = threading.Barrier(3)  # no request is answered before three have arrived

        def answer(body: Json, number: int) -> Any:
            together.wait(30)
            time.sleep(0.02)  # long enough for a fourth to arrive
            return like_vllm(body, number)

        server = serve(answer)
        sample(connect(server, concurrency=3), 9)
        assert server.most_running == 3

    def test_images_are_read_while_all_requests_are_open_and_only_some_ahead(
        self,
        serve: Any,
        connect: Any,
        like_vllm: Answer,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """With one request at a time: while it is open, the next prompts are read, 8 at most."""
        ahead, total = openai_backend.READ_AHEAD, 14
        read, changed, seen = [0], threading.Condition(), []

        def count(image: Image.Image) -> str:
            with changed:
                read[0] += 1
                changed.notify_all()
            return png_url(image)

        def answer(body: Json, number: int) -> Any:
            wanted = min(total, len(seen) + 1 + ahead)
            with changed:
                assert changed.wait_for(lambda: read[0] >= wanted, 30)
            time.sleep(0.02)  # nothing more may be read
            seen.append(read[0])
            return like_vllm(body, number)

        png_url = openai_prompts.png_url
        monkeypatch.setattr(openai_prompts, "png_url", count)
        server = serve(answer)
        found = sample(connect(server, concurrency=1), total)
        assert [ids_of(one) for one in found] == [expected(i) for i in range(total)]
        assert server.most_running == 1
        assert seen == [min(total, place + 1 + ahead) for place in range(total)]

    def test_missing_choices_are_requested_with_other_seeds(
        self, serve: Any, connect: Any, like_vllm: Answer
    ) -> None:
        def at_most_two(body: Json, number: int) -> Any:
            return like_vllm(body | {"n": min(2, body["n"])}, number)

        server = serve(at_most_two)
        backend = connect(server)
        first = sample(backend, 1)
        assert [body["n"] for body in server.bodies] == [5, 3, 1]
        seeds = [body["seed"] for body in server.bodies]
        assert seeds[0] == sent(0) and len(set(seeds)) == 3
        assert all(0 <= seed < 2**62 for seed in seeds)
        wanted = [drawn_ids(seed, i) for seed in seeds for i in range(2)][:5]
        assert ids_of(first[0]) == wanted
        assert sample(backend, 1) == first

    def test_choices_are_ordered_by_their_index(
        self, serve: Any, connect: Any, like_vllm: Answer
    ) -> None:
        def reversed_(body: Json, number: int) -> Any:
            reply = like_vllm(body, number)
            assert isinstance(reply, dict)
            return reply | {"choices": reply["choices"][::-1]}

        assert ids_of(sample(connect(serve(reversed_)), 1)[0]) == expected(0)

    def test_several_images_and_earlier_turns_are_sent_in_their_order(
        self, serve: Any, connect: Any, like_vllm: Answer
    ) -> None:
        """The tokens are compared with training's; a server that moves an image is found."""
        facts = {"sha256": "", "width": 30, "height": 20, "notes": []}
        row = {
            **make_row(1, encoded_file(noise_image(1)), "which <image> is <image>?"),
            "more_images": [{"bytes": encoded_file(noise_image(2, 30, 20)), "path": None}],
            "more_image_facts": [facts],
            "box_image": 1,
            "history": [
                {"role": "system", "content": "one two"},
                {"role": "user", "content": "red"},
                {"role": "assistant", "content": "blue"},
            ],
        }
        server = serve(like_vllm)
        backend = connect(server, model_settings={"system_prompt": "not this"})
        (found,) = backend.sample([row], [seed_of(0)])
        assert ids_of(found) == expected(0)
        (body,) = server.bodies
        assert [image.size for image in pictures(body)] == [(30, 20), (48, 40)]
        *earlier, asked = body["messages"]
        assert earlier == row["history"]
        kinds = [part.get("text", part["type"]) for part in asked["content"]]
        assert kinds == ["which ", "image_url", " is ", "image_url", "?"]

        def moving(body: Json, number: int) -> Any:
            parts = body["messages"][-1]["content"]
            parts[0], parts[1] = parts[1], parts[0]
            return like_vllm(body, number)

        with pytest.raises(ConfigError, match="the server and training read different tokens"):
            connect(serve(moving)).sample([row], [seed_of(0)])

    def test_a_row_that_cannot_be_read_fails_and_is_never_sent(
        self, serve: Any, connect: Any, like_vllm: Answer
    ) -> None:
        server = serve(like_vllm)
        rows = [
            make_row(0, encoded_file(noise_image(0))[:300]),
            make_row(1, prompt="what is on <image><image>?"),
            make_row(2),
            make_row(3, prompt="is </s> struck out?"),
        ]
        broken, places, good, spelled = connect(server).sample(rows, [1, 2, seed_of(2), 4])
        assert "the image cannot be decoded" in reason_of(broken)
        assert "the prompt holds <image> more than once" in reason_of(places)
        assert "'</s>', a control token of the model, and a server reads it" in reason_of(spelled)
        assert ids_of(good) == expected(2)
        assert len(server.bodies) == 1

    def test_no_rows_need_no_request(self, serve: Any, connect: Any, like_vllm: Answer) -> None:
        server = serve(like_vllm)
        assert connect(server).sample([], []) == []
        assert not server.bodies

    def test_an_interrupt_ends_the_stage_at_once_and_closes_connections(
        self, serve: Any, connect: Any, like_vllm: Answer
    ) -> None:
        begun = threading.Barrier(4)

        def hang(body: Json, number: int) -> Any:
            if begun.wait(LONGEST_WAIT_S) == 0:
                os.kill(os.getpid(), signal.SIGINT)
            return UNANSWERED

        server = serve(hang)
        backend = connect(server, concurrency=4)
        # A shell starts background jobs with this signal ignored.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                sample(backend, 40)
        finally:
            signal.signal(signal.SIGINT, before)
        assert server.hung_up.wait(LONGEST_WAIT_S)
        assert len(server.bodies) == 4  # nothing was sent after it


def one_choice(**changes: Any) -> Answer:
    return lambda body, number: {"choices": [choice(0, [5, END], **changes)]}


class TestHostileAnswers:
    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            (one_choice(finish_reason="content_filter"), "finish_reason 'content_filter'"),
            (one_choice(finish_reason="abort"), "finish_reason 'abort'"),
            (one_choice(finish_reason=None), "finish_reason None"),
            (one_choice(message={"content": None}, token_ids=None), "without content"),
            (one_choice(message={}, token_ids=None), "without content"),
            (one_choice(message={"content": 7}), "choices.0.message.content"),
            (one_choice(message={"content": "a\ufdd0"}, token_ids=None), "be tokenised: .*FDD0"),
            (one_choice(message=None), "choices.0.message"),
            (one_choice(token_ids=[-1, END]), "choices.0.token_ids.0"),
            (one_choice(token_ids=[True, END]), "choices.0.token_ids.0"),
            (one_choice(token_ids=["5", END]), "choices.0.token_ids.0"),
            (one_choice(token_ids="5"), "choices.0.token_ids"),
            (one_choice(token_ids=[300, END]), "that this model cannot draw"),
            (one_choice(token_ids=[10**30, END]), "choices.0.token_ids.0|that this model cannot"),
            (one_choice(token_ids=[IMAGE_ID, END]), "that this model cannot draw"),
            (one_choice(token_ids=[5, 6]), "stopped at token 6"),
            (one_choice(token_ids=[]), "stopped at token None"),
            (one_choice(token_ids=[5], finish_reason="length"), "after 1 tokens.* is 6"),
            (one_choice(token_ids=[5] * 7 + [END]), "after 8 tokens"),
            (one_choice(logprobs=[1]), "choices.0.logprobs"),
            (lambda *_: {"choices": []}, "0 choices instead of 1"),
            (lambda *_: {"choices": [choice(0, [END])] * 2}, "2 choices instead of 1"),
            (lambda *_: {"choices": None}, "choices"),
            (lambda *_: {}, "choices"),
            (lambda *_: Reply(200, "<html>welcome</html>"), "the server's answer is malformed"),
            (lambda *_: Reply(200, ""), "the server's answer is malformed"),
            (lambda *_: Reply(200, '{"choices": [' * 3000), "the server's answer is malformed"),
            (
                lambda *_: Reply(200, r'{"choices": [{"message": {"content": "\ud800"}}]}'),
                "malformed",
            ),
            (lambda *_: Reply(200, "no gzip at all", Content_Encoding="gzip"), "DecodingError"),
        ],
    )
    def test_a_nonsensical_answer_is_a_failure_with_its_reason(
        self, serve: Any, connect: Any, answer: Answer, reason: str
    ) -> None:
        result = sample(connect(serve(answer), num_samples=1), 1)[0]
        assert re.search(reason, reason_of(result)), reason_of(result)

    @pytest.mark.parametrize("logprob", [float("nan"), float("-inf"), None])
    def test_a_logprob_that_is_not_a_number_gives_none(
        self, serve: Any, connect: Any, logprob: float | None
    ) -> None:
        content = [{"token": "x", "logprob": logprob}, {"token": "y", "logprob": -1.0}]
        answer = one_choice(logprobs={"content": content})
        (result,) = sample(connect(serve(answer), num_samples=1), 1)
        assert isinstance(result, SampledList)
        assert result.completions[0].sampler_logprob is None

    def test_logprobs_that_do_not_match_the_tokens_are_not_summed(
        self, serve: Any, connect: Any
    ) -> None:
        answer = one_choice(logprobs={"content": [{"token": "x", "logprob": -1.0}]})
        (result,) = sample(connect(serve(answer), num_samples=1), 1)
        assert isinstance(result, SampledList)
        assert result.completions[0].sampler_logprob is None

    def test_an_empty_text_without_an_end_is_a_failure(self, serve: Any, connect: Any) -> None:
        def answer(body: Json, number: int) -> Json:
            empty = choice(0, [5], message={"content": ""}, finish_reason="length")
            return without_ids({"choices": [empty]})

        backend = connect(serve(answer, owned_by="someone"), num_samples=1)
        assert "empty answer" in reason_of(sample(backend, 1)[0])

    @settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(body=BODIES)
    def test_any_body_is_a_completion_a_failure_or_an_error(
        self, serve: Any, connect: Any, body: str
    ) -> None:
        """A ConfigError says what the server does with thoughts or prompts."""
        if not hasattr(self, "backend"):
            self.server = serve(lambda *_: {}, owned_by="someone")
            self.backend = connect(self.server, num_samples=1)
        self.server.answer = lambda *_: Reply(200, body)
        try:
            (result,) = sample(self.backend, 1)
        except ConfigError as error:
            assert error.what and error.fix
        else:
            assert isinstance(result, Failure) or all(c.token_ids for c in result.completions)


class TestKeyAndAddress:
    def test_the_key_is_sent_and_perpo_api_key_has_priority(
        self, serve: Any, connect: Any, like_vllm: Answer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = serve(like_vllm)
        sample(connect(server), 1)
        monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
        sample(connect(server), 1)
        monkeypatch.setenv("PERPO_API_KEY", "another")
        sample(connect(server), 1)
        sent = [headers.get("Authorization") for headers in server.headers]
        assert sent == [None, None, f"Bearer {KEY}", f"Bearer {KEY}", *["Bearer another"] * 2]

    @pytest.mark.parametrize("status", [401, 403])
    @pytest.mark.parametrize("at", ["models", "completions"])
    def test_a_refused_key_stops_at_once_and_is_never_shown(
        self,
        serve: Any,
        connect: Any,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
        status: int,
        at: str,
    ) -> None:
        monkeypatch.setenv("PERPO_API_KEY", KEY)
        caplog.set_level(0)
        refusal = Reply(status, {"error": {"message": f"Bearer {KEY} is not welcome"}})
        server = serve(lambda *_: refusal)
        if at == "models":
            server.models = refusal
        with pytest.raises(ConfigError, match="PERPO_API_KEY") as caught:
            sample(connect(server, concurrency=2), 20)
        assert len(server.bodies) <= 2
        assert server.url in str(caught.value) and "is not welcome" in str(caught.value)
        out = capfd.readouterr()
        shown = [str(caught.value), repr(caught.value), out.out, out.err, caplog.text]
        assert not any(KEY in text for text in shown)

    def test_a_refusal_without_a_key_says_so(self, serve: Any, connect: Any) -> None:
        server = serve(lambda *_: {})
        server.models = Reply(401, "who are you?")
        with pytest.raises(ConfigError, match="a request without a key") as caught:
            connect(server)
        assert "PERPO_API_KEY" in str(caught.value)

    def test_a_key_with_characters_not_allowed_in_a_header_is_not_shown(
        self, serve: Any, connect: Any, like_vllm: Answer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = serve(like_vllm)
        for bad in (f"{KEY}\nHost: x", f"{KEY}é"):
            monkeypatch.setenv("PERPO_API_KEY", bad)
            with pytest.raises(ConfigError, match="PERPO_API_KEY") as caught:
                connect(server)
            assert KEY not in str(caught.value)
        assert not server.headers

    def test_a_missing_model_is_reported_with_those_that_vllm_has(
        self, serve: Any, connect: Any, like_vllm: Answer
    ) -> None:
        server = serve(like_vllm, model="llava-7b")
        with pytest.raises(ConfigError, match=r"'tiny'.*has llava-7b") as caught:
            connect(server)
        assert server.url in str(caught.value) and "served_model" in str(caught.value)

    def test_a_missing_model_of_another_server_stops_at_once(
        self, serve: Any, connect: Any
    ) -> None:
        refusal = Reply(404, {"error": {"message": "The model `tiny` does not exist."}})
        server = serve(lambda *_: refusal, model="llava-7b", owned_by="someone")
        with pytest.raises(ConfigError, match=r"'tiny'.*has llava-7b") as caught:
            sample(connect(server), 8)
        assert "does not exist" in str(caught.value) and server.url in str(caught.value)
        assert set(server.seen.values()) == {1}

    def test_a_redirect_is_not_followed(
        self, serve: Any, connect: Any, like_vllm: Answer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PERPO_API_KEY", KEY)
        elsewhere = serve(like_vllm)
        server = serve(like_vllm)
        server.models = Reply(307, "", Location=f"{elsewhere.url}/models")
        with pytest.raises(ConfigError, match="HTTP 307"):
            connect(server)
        assert not elsewhere.headers

    def test_a_web_page_is_not_a_server(self, serve: Any, connect: Any) -> None:
        server = serve(lambda *_: {})
        server.models = Reply(200, "<html>")
        with pytest.raises(ConfigError, match="not an OpenAI-compatible server") as caught:
            connect(server)
        assert server.url in str(caught.value)

    @pytest.mark.parametrize(
        "url",
        [
            None,
            "",
            "127.0.0.1:8000/v1",
            "ftp://127.0.0.1/v1",
            "http://",
            "http:///v1",
            "http://127.0.0.1:port/v1",
            "http://[::1/v1",
            "http://127.0.0.1/\nv1",
            f"http://user:{KEY}@127.0.0.1/v1",
            f"http://{KEY}@127.0.0.1/v1",
            f"http://127.0.0.1/v1?key={KEY}",
            f"ftp://user:{KEY}@127.0.0.1/v1",
        ],
    )
    def test_an_unusable_address_is_refused_without_being_shown(
        self, connect: Any, url: str | None
    ) -> None:
        with pytest.raises(ConfigError, match="base_url") as caught:
            connect("", base_url=url)
        assert KEY not in str(caught.value)

    def test_a_trailing_slash_is_ignored(self, serve: Any, connect: Any, like_vllm: Answer) -> None:
        server = serve(like_vllm)
        sample(connect(server.url + "/"), 1)
        assert server.paths == ["/v1/models", "/v1/chat/completions"]

    def test_no_proxy_is_used_for_a_server_on_this_machine(
        self, serve: Any, connect: Any, like_vllm: Answer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        assert ids_of(sample(connect(serve(like_vllm)), 1)[0]) == expected(0)

    def test_a_missing_httpx_names_the_install_command(
        self, connect: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "httpx", None)
        with pytest.raises(MissingDependencyError, match="httpx") as caught:
            connect("http://127.0.0.1:9/v1")
        assert caught.value.fix == "pip install -c constraints.txt -e '.[openai]'"

    def test_an_adapter_is_refused_by_the_openai_backend(
        self, model_dir: Path, tmp_path: Path
    ) -> None:
        setup = BackendSetup(
            ModelConfig(),
            resolve_model(str(model_dir)),
            {},
            SampleConfig(),
            tmp_path,
            adapter=tmp_path / "adapter",
        )
        with pytest.raises(ConfigError, match="adapter"):
            OpenAIBackend(setup)
