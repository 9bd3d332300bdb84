"""Sample lists of completions from an OpenAI-compatible server: `vllm serve` or any other.

One request a prompt asks for all N completions; the image is sent as the very pixels that training
hands to the processor. A server that says it is vLLM is told the whole distribution (softmax(logits
/ T) over all tokens but image placeholders, unless the configuration asks for more), so that
nothing of a model's generation_config.json remains, and answers with token ids: those of the first
prompt are compared with `encode_prompt`'s, and their number at every prompt. Of any other server
only the text is known, and not what it does to its distribution besides: `notes` says so.

vLLM prepares images with torchvision unless it is started with `--mm-processor-kwargs
'{"use_fast": false}'`; the pixels then are training's. No server tells which it is.
"""

import asyncio
import base64
import io
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.sample.backend import BackendSetup, Done, Failure, Row, SampledList, Size
from perpo_pipeline.sample.prompt_tokens import compare_prompt_tokens
from perpo_pipeline.sample.vllm_engine import TEMPERATURES
from perpo_pipeline.seeds import derive_seed
from perpo_pipeline.vlm.completion import Completion
from perpo_pipeline.vlm.inputs import (
    IDENTITY_CACHE,
    RowError,
    encode_row,
    faults_of_one_row,
    prompt_image,
)
from perpo_pipeline.vlm.loading import load_front
from perpo_pipeline.vlm.openai_server import Refused, Server, Wire, read_answer
from perpo_pipeline.vlm.processors import decode_completions
from perpo_pipeline.vlm.prompts import (
    adds_special_tokens,
    count_prompt_tokens,
    prepare_image,
    render_prompt,
    resized_size,
)

if TYPE_CHECKING:
    import httpx


class _Token(Wire):
    logprob: float | None = None


class _Logprobs(Wire):
    content: list[_Token] | None = None


class _Message(Wire):
    content: str | None = None


class _Choice(Wire):
    message: _Message
    index: int = 0
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[Annotated[int, Field(ge=0)]] | None = None


class _Reply(Wire):
    choices: list[_Choice]
    prompt_token_ids: list[int] | None = None


@dataclass(frozen=True)
class _Prompt:
    """A row as the server is sent it; `num_tokens` with the image's, where that is known."""

    row: Row
    message: Mapping[str, Any]
    adds_special_tokens: bool
    num_tokens: int | None
    resized: Size | None


class OpenAIBackend:
    """Draws completions by HTTP; the model's own processor is needed here, its weights are not.

    Raises ConfigError where the server, the key, the model's name or the settings are wrong for
    every prompt, MissingDependencyError without httpx, and what `load_front` raises.
    """

    prompts_a_call = 0  # many requests run at a time

    def __init__(self, setup: BackendSetup) -> None:
        if setup.adapter is not None:
            raise ConfigError(
                "the openai backend cannot load an adapter into a server",
                where=str(setup.adapter),
                fix="serve it (vllm serve --lora-modules, or merged) and name it in served_model",
            )
        self.config = setup.sample
        self.server = Server(self.config.base_url, self.config.served_model or setup.model.id)
        asyncio.run(self.server.identify())
        self._check_settings()
        self.reader = _Reader(setup)
        self.is_compared = False  # whether the server's tokens were found to be training's
        self._notes: dict[str, str] = {}
        if not self.server.is_vllm:
            self._notes["token_ids"] = self._untold()

    def notes(self) -> dict[str, Any]:
        """What a server does not send, token ids or log-probabilities, and what follows."""
        return dict(self._notes)

    def sample(
        self, rows: Sequence[Row], seeds: Sequence[int], done: Done | None = None
    ) -> list[SampledList | Failure]:
        """The list of each prompt, in order (see `backend.Backend`); Ctrl-C ends all requests.

        Raises ConfigError where the server's tokens of a prompt are not those of training.
        """
        return asyncio.run(self._sample(list(zip(rows, seeds, strict=True)), done))

    def _check_settings(self) -> None:
        config, (low, high) = self.config, TEMPERATURES
        if self.server.is_vllm:
            if not low <= config.temperature <= high:
                raise ConfigError(
                    f"temperature is {config.temperature}; vLLM draws from {low} to {high}"
                )
            return
        asked = {
            "top_k": config.top_k is not None,
            "repetition_penalty": config.repetition_penalty != 1,
        }
        if names := [name for name, is_asked in asked.items() if is_asked]:
            raise ConfigError(
                f"{' and '.join(names)}: no field of the OpenAI protocol, and the server does not "
                f"say of the model {self.server.model!r} that it is vLLM's",
                where=self.server.url,
                fix="leave them out, or sample from vLLM",
            )

    def _untold(self) -> str:
        return (
            f"{self.server.url} sends no token ids: the answers' are retokenised from their text; "
            "whether it reads prompts as training does, and draws from softmax(logits / T) alone, "
            "is not known (of `vllm serve` it is)"
        )

    async def _sample(
        self, jobs: list[tuple[Row, int]], done: Done | None
    ) -> list[SampledList | Failure]:
        slots = asyncio.Semaphore(self.config.concurrency)
        async with self.server.client() as client:

            async def one(index: int, row: Row, seed: int) -> SampledList | Failure:
                async with slots:
                    result = await self._sample_one(client, row, seed)
                if done is not None:
                    done(index, result)
                return result

            try:
                async with asyncio.TaskGroup() as group:  # one error cancels the others
                    tasks = [group.create_task(one(i, *job)) for i, job in enumerate(jobs)]
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _sample_one(
        self, client: "httpx.AsyncClient", row: Row, seed: int
    ) -> SampledList | Failure:
        try:
            prompt = await asyncio.to_thread(self.reader.read, row)
            return SampledList(await self._draw(client, prompt, seed), prompt.resized)
        except (Refused, RowError) as error:
            return Failure(str(error))

    async def _draw(
        self, client: "httpx.AsyncClient", prompt: _Prompt, seed: int
    ) -> list[Completion]:
        """N completions; a server that gives fewer at a time is asked again, with other seeds."""
        drawn: list[Completion] = []
        for attempt in count():
            missing = self.config.num_samples - len(drawn)
            if not missing:
                break
            own = seed if attempt == 0 else derive_seed(seed, "more", str(attempt))
            answer = await self.server.ask(client, self._body(prompt, missing, own))
            reply = read_answer(answer, _Reply)
            await asyncio.to_thread(self._compare, prompt, reply.prompt_token_ids)
            if not 0 < len(reply.choices) <= missing:
                raise Refused(f"the server sent {len(reply.choices)} choices instead of {missing}")
            choices = sorted(reply.choices, key=lambda choice: choice.index)
            drawn += await asyncio.to_thread(self._completions, choices)
            if any(choice.token_ids is None for choice in choices):
                self._notes["token_ids"] = self._untold()
            if not self.server.gives_logprobs:
                self._notes["logprobs"] = self._without_logprobs()
        return drawn

    def _body(self, prompt: _Prompt, num: int, seed: int) -> dict[str, Any]:
        config, vllm = self.config, self.server.is_vllm
        body = {
            "model": self.server.model,
            "messages": [prompt.message],
            "n": num,
            "temperature": config.temperature,
            "top_p": config.top_p,
            # vLLM's completion i draws from seed + i, in 63 bits; 31 bits fit every server.
            "seed": seed >> (1 if vllm else 32),
            self.server.limit_name: config.max_new_tokens,
        }
        if self.server.gives_logprobs:
            body["logprobs"] = True
        if not vllm:
            return body
        # Whatever is left out here, vLLM takes from the model's generation_config.json.
        return body | {
            "top_k": config.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": config.repetition_penalty,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "logit_bias": {str(token): -100.0 for token in self.reader.banned},
            "ignore_eos": True,  # the tokenizer's own, which need not be among the model's
            "stop_token_ids": list(self.reader.end_ids),
            "add_special_tokens": prompt.adds_special_tokens,
            "skip_special_tokens": True,
            "return_token_ids": True,
        }

    def _compare(self, prompt: _Prompt, served: Sequence[int] | None) -> None:
        """Raise ConfigError if the server read other tokens than training would."""
        if served is None or (self.is_compared and len(served) == prompt.num_tokens):
            return
        self.reader.compare(
            prompt.row,
            served,
            who="the server",
            where=self.server.url,
            fix="serve the model of model.id with its own chat template and its own sizes of "
            "images; vLLM may also not know this model's way to cut images into tokens",
        )
        self.is_compared = True

    def _without_logprobs(self) -> str:
        return f"{self.server.url} refuses to send log-probabilities: there is no sampler_logprob"

    def _completions(self, choices: Sequence[_Choice]) -> list[Completion]:
        return [self._completion(choice) for choice in choices]

    def _completion(self, choice: _Choice) -> Completion:
        reason, content = choice.finish_reason, choice.message.content
        if reason not in ("stop", "length"):
            raise Refused(f"the server ended an answer with finish_reason {reason!r}")
        if content is None:
            raise Refused(f"the server sent an answer without content (finish_reason {reason})")
        found = choice.logprobs.content if choice.logprobs else None
        logprobs = None if found is None else [token.logprob for token in found]
        if choice.token_ids is None:
            ids = self.reader.tokenise(content, ends=reason == "stop")
            if not ids:
                raise Refused("the server sent an empty answer that did not end")
        else:
            ids = self._checked(choice.token_ids, reason)
            content = self.reader.decode(ids)
            if logprobs is not None and len(logprobs) != len(ids):
                logprobs = None
        return Completion(content, ids, reason, _sum(logprobs))

    def _checked(self, ids: list[int], reason: str) -> tuple[int, ...]:
        """A server's token ids, if the model can have drawn them under the run's settings."""
        limit, reader = self.config.max_new_tokens, self.reader
        if any(i >= reader.vocab_size or i in reader.banned for i in ids):
            raise Refused("the server sent token ids that no answer of this model can hold")
        if reason == "stop" and not (ids and ids[-1] in reader.end_ids):
            last = ids[-1] if ids else None
            raise Refused(f"the server stopped at token {last}, no end token of the model")
        if len(ids) > limit or (reason == "length" and len(ids) < limit):
            raise Refused(
                f"the server ended an answer after {len(ids)} tokens where max_new_tokens is "
                f"{limit}: start it with --generation-config vllm and a --max-model-len that holds "
                "prompt and answer"
            )
        return tuple(ids)


class _Reader:
    """Rows as the server is sent them and as training reads them, and tokens back and forth."""

    def __init__(self, setup: BackendSetup) -> None:
        front = load_front(setup.resolved, identity_cache=setup.scratch / IDENTITY_CACHE)
        self.front, self.preprocess = front, str(setup.model_settings["preprocess"])
        config: Any = front.model.config
        self.vocab_size = int(config.get_text_config().vocab_size)
        self.banned = front.banned_token_ids
        self.end_ids = front.eos_token_ids
        own = front.tokenizer.eos_token_id
        self.usual_end = int(own) if own in self.end_ids else self.end_ids[0]
        self.lock = threading.Lock()  # the library's fast tokenizers refuse two threads at a time

    def read(self, row: Row) -> _Prompt:
        """Raises RowError for a row that cannot be read."""
        front = self.front
        with faults_of_one_row(row):
            image = prepare_image(front, prompt_image(row), self.preprocess)
            text = render_prompt(front, row["prompt"])
            with self.lock:
                num_tokens = count_prompt_tokens(front, text, image.size)
            resized = resized_size(front, image.size)
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=1)  # fast; without loss at any level
        picture = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        content = [
            {"type": "image_url", "image_url": {"url": picture}},
            {"type": "text", "text": row["prompt"]},
        ]
        return _Prompt(
            row=row,
            message={"role": "user", "content": content},
            adds_special_tokens=adds_special_tokens(front, text),
            num_tokens=num_tokens,
            resized=resized,
        )

    def compare(self, row: Row, served: Sequence[int], **told: str) -> None:
        """`compare_prompt_tokens` with what training reads; slow, as it makes the pixels, too."""
        with self.lock:
            expected = encode_row(self.front, row, self.preprocess).input_ids.tolist()
            compare_prompt_tokens(self.front, served, expected, prompt_id=row["prompt_id"], **told)

    def tokenise(self, text: str, *, ends: bool) -> tuple[int, ...]:
        """A text's ids; what looks like a special token in it was spelt out and stays so."""
        with self.lock:
            found = self.front.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        ids = tuple(int(i) for i in found["input_ids"])
        return (*ids, self.usual_end) if ends else ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a completion."""
        with self.lock:
            (text,) = decode_completions(self.front.tokenizer, [ids])
        return text


def _sum(logprobs: Sequence[float | None] | None) -> float | None:
    if logprobs is None or any(p is None for p in logprobs):
        return None
    total = math.fsum(p for p in logprobs if p is not None)
    return total if math.isfinite(total) else None
