"""Completions from an OpenAI-compatible server: `vllm serve` or any other.

One request per prompt asks for all N completions; a server that returns one instead gets a request
for each, with a seed of its own. The image is sent as exactly the pixels that
training gives to the processor; where the run limits its pixels, it is sent as training resizes it,
because vLLM refuses limits in a request (unless started with --trust-request-mm-kwargs).

A server that identifies itself as vLLM gets the whole distribution in the request: softmax(logits /
T) over all tokens except image placeholders, unless the configuration asks for more. Nothing of the
model's generation_config.json then applies. vLLM returns token ids: those of the first prompt are
compared with `encode_prompt`'s, and their number for every prompt.

Any other server returns only text, and does not say what else it does to its distribution: `notes`
says so. A completion is the text that the model drew, with its thoughts: a server that takes them
out of the answer, and returns no token ids, is refused.

vLLM prepares images with torchvision unless it is started with `--mm-processor-kwargs
'{"use_fast": false}'`, which gives training's pixels. No server reports which one it uses.
"""

import asyncio
import math
import re
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from perpo_pipeline.answers.pipeline import answer_text
from perpo_pipeline.answers.settings import Reading
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.inference.answer_lengths import ended_early, length_fault
from perpo_pipeline.inference.backend import BackendSetup, Failure, OnDone, Row, SampledList
from perpo_pipeline.inference.backends import check_adapter
from perpo_pipeline.inference.openai_prompts import PromptReader, RequestPrompt
from perpo_pipeline.inference.openai_replies import Choice, EqualLists, Reply
from perpo_pipeline.inference.prompt_tokens import answer_too_long, prompt_too_long
from perpo_pipeline.inference.vllm_engine import TEMPERATURES
from perpo_pipeline.seeds import derive_seed
from perpo_pipeline.store.prompt_images import num_images
from perpo_pipeline.vlm.chat_rendering import arguments_for_server, idle_notes
from perpo_pipeline.vlm.completion import Completion
from perpo_pipeline.vlm.image_limits import server_advice
from perpo_pipeline.vlm.inputs import RowError, context_length
from perpo_pipeline.vlm.openai_server import Refused, Server, read_answer

if TYPE_CHECKING:
    import httpx

READ_AHEAD = 8  # prompts that are ready to be sent, or being read, while all requests are open
NAMES_N = re.compile(r"\bn\b(?!'t)")  # in a refusal: the parameter of the request


class OpenAIBackend:
    """Draws completions by HTTP; needs the model's own processor here, but not its weights.

    Raises ConfigError if the server, the key, the model's name or the settings are wrong for every
    prompt, MissingDependencyError without httpx, and what `load_without_weights` raises.
    """

    prompts_per_call = 0  # many requests run at once
    answers_alone = True  # whatever the server does with other requests, ours included

    def __init__(self, setup: BackendSetup) -> None:
        check_adapter("openai", setup.adapter)
        self.decoding, self.settings, self.longest = setup.decoding, setup.settings, setup.longest
        self.server = Server(
            self.settings.base_url,
            self.settings.served_model or setup.model.id,
            stage=self.settings.section,
            named_by=self.settings.key("served_model"),
        )
        asyncio.run(self.server.identify())
        self._check_settings()
        self.reader = PromptReader(setup)
        self.context = context_length(self.reader.weightless)
        vlm, is_vllm = self.reader.weightless, self.server.is_vllm
        self.template_arguments = arguments_for_server(vlm, takes_arguments=is_vllm)
        # Numbers of images of which a prompt's tokens were found equal to training's.
        self.compared: set[int] = set()
        self._notes: dict[str, str] = idle_notes(vlm)
        self.equal = EqualLists()
        if not self.server.is_vllm:
            self._notes["token_ids"] = self._retokenised_note()
            if note := self._image_note():
                self._notes["image_size"] = note

    def notes(self) -> dict[str, Any]:
        """What the server does not return (token ids, log-probabilities), and what follows."""
        return dict(self._notes)

    def sample(
        self, rows: Sequence[Row], seeds: Sequence[int], on_done: OnDone | None = None
    ) -> list[SampledList | Failure]:
        """Draw the list of each prompt (see `backend.Backend`); Ctrl-C cancels all requests.

        Raises ConfigError if the server reads a prompt as other tokens than training does.
        """
        return asyncio.run(self._sample(list(zip(rows, seeds, strict=True)), on_done))

    def close(self) -> None:
        """Nothing is held: each call opens its own connections."""

    def _check_settings(self) -> None:
        how, (low, high) = self.decoding, TEMPERATURES
        if self.server.is_vllm:
            if not how.is_greedy and not low <= how.temperature <= high:
                name = self.settings.key("temperature")
                raise ConfigError(
                    f"{name} is {how.temperature}; vLLM accepts {low} to {high}",
                    fix=f"set {name} from {low} to {high}",
                )
            return
        wanted = {
            "top_k": how.top_k is not None,
            "repetition_penalty": how.repetition_penalty != 1,
        }
        if names := [name for name, is_wanted in wanted.items() if is_wanted]:
            raise ConfigError(
                f"{' and '.join(names)}: the OpenAI protocol has no such field, and the server "
                f"does not identify itself as vLLM for the model {self.server.model!r}",
                where=self.server.url,
                fix=f"remove them from {self.settings.section}, or ask vLLM",
            )

    def _retokenised_note(self) -> str:
        how = (
            "takes the likeliest token"
            if self.decoding.is_greedy
            else "draws from softmax(logits / T)"
        )
        system = ""
        if self.reader.system:
            system = " The server's template may leave model.system_prompt out."
        return (
            f"{self.server.url} returns no token ids, so completions are tokenised from their "
            "text. Unlike with `vllm serve`, it is unknown whether this server reads prompts as "
            f"training does and {how} alone.{system}"
        )

    def _image_note(self) -> str | None:
        """What a server whose tokens are unknown may do to images; None without limits."""
        if not (arguments := self.reader.image_arguments):
            return None
        limits = self.reader.weightless.limits
        if "size" in arguments:
            return (
                f"images are sent to {self.server.url} as training resizes them ({limits}); it is "
                "unknown whether this server resizes them again"
            )
        return (
            f"it is unknown whether {self.server.url} cuts images as {limits} says: it gets them "
            f"whole, and must have been started for it; {server_advice(arguments)}"
        )

    async def _sample(
        self, jobs: list[tuple[Row, int]], on_done: OnDone | None
    ) -> list[SampledList | Failure]:
        slots = asyncio.Semaphore(self.settings.concurrency)
        ahead = asyncio.Semaphore(self.settings.concurrency + READ_AHEAD)
        done: list[SampledList | Failure] = []
        async with self.server.client() as client:

            async def sample_one(index: int, row: Row, seed: int) -> SampledList | Failure:
                async with ahead:
                    result = await self._sample_one(client, slots, row, seed)
                done.append(result)
                if on_done is not None:
                    on_done(index, result)
                return result

            try:
                async with asyncio.TaskGroup() as group:  # one error cancels the others
                    tasks = [group.create_task(sample_one(i, *job)) for i, job in enumerate(jobs)]
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
            finally:  # an interrupt, too: what is kept of the call counts
                self._note_equal_lists(done)
        return [task.result() for task in tasks]

    def _note_equal_lists(self, done: Sequence[SampledList | Failure]) -> None:
        # A server that ignores n may ignore the seed as well.
        several = 2 if self.server.gives_n else 1
        if not self.server.is_vllm and (note := self.equal.add(done, several)):
            self._notes["equal_completions"] = f"{self.server.url}: {note}"

    async def _sample_one(
        self, client: "httpx.AsyncClient", slots: asyncio.Semaphore, row: Row, seed: int
    ) -> SampledList | Failure:
        try:
            prompt = await asyncio.to_thread(self.reader.read, row)
            if failure := prompt_too_long(prompt.num_tokens, self.context):
                return failure
            async with slots:
                drawn = await self._draw(client, prompt, seed)
            longest = max(len(one.token_ids) for one in drawn)
            failure = answer_too_long(prompt.num_tokens, longest, self.context)
            return failure or SampledList(drawn, prompt.resized)
        except RowError as error:
            return Failure(error.reason)
        except Refused as error:
            return Failure(str(error))

    async def _draw(
        self, client: "httpx.AsyncClient", prompt: RequestPrompt, seed: int
    ) -> list[Completion]:
        """N completions; if the server returns fewer, the rest are requested with other seeds."""
        drawn: list[Completion] = []
        for attempt in count():
            missing = self.decoding.num_samples - len(drawn)
            if not missing:
                break
            own = seed if attempt == 0 else derive_seed(seed, "more", str(attempt))
            reply = await self._ask(client, prompt, missing, own)
            await asyncio.to_thread(self._compare, prompt, reply.prompt_token_ids)
            if not 0 < len(reply.choices) <= missing:
                raise Refused(f"the server sent {len(reply.choices)} choices instead of {missing}")
            self._check_thoughts(reply)
            drawn += await asyncio.to_thread(self._completions, reply, self.longest(prompt.row))
            if any(choice.token_ids is None for choice in reply.choices):
                self._notes["token_ids"] = self._retokenised_note()
            if not self.server.gives_logprobs:
                self._notes["logprobs"] = (
                    f"{self.server.url} refuses to return log-probabilities: sampler_logprob "
                    "is empty"
                )
        return drawn

    async def _ask(
        self, client: "httpx.AsyncClient", prompt: RequestPrompt, num: int, seed: int
    ) -> Reply:
        """One reply with up to `num` choices; notices a server that always returns one."""
        if not self.server.gives_n:
            num = 1
        try:
            answer = await self.server.ask(client, self._body(prompt, num, seed))
        except Refused as error:
            if num == 1 or not NAMES_N.search(str(error)):
                raise
            try:
                answer = await self.server.ask(client, self._body(prompt, 1, seed))
            except Refused:
                raise error from None
            self._ask_singly(f"refuses to return {num} choices")
        reply = read_answer(answer, Reply)
        if len(reply.choices) == 1 and num > 1:
            self._ask_singly(f"returned 1 of {num} choices")
        return reply

    def _ask_singly(self, why: str) -> None:
        if self.server.gives_n:
            self.server.gives_n = False
            self._notes["single_requests"] = (
                f"{self.server.url} {why}: it gets one request for each completion, with a seed of "
                "its own"
            )

    def _body(self, prompt: RequestPrompt, num: int, seed: int) -> dict[str, Any]:
        how, vllm = self.decoding, self.server.is_vllm
        body = {
            "model": self.server.model,
            "messages": prompt.messages,
            "n": num,
            "temperature": how.temperature,
            "top_p": how.top_p,
            # vLLM's completion i draws from seed + i, in 63 bits; 31 bits fit every server.
            "seed": seed >> (1 if vllm else 32),
            self.server.limit_name: self.longest(prompt.row),
        }
        if self.server.gives_logprobs and not how.is_greedy:
            body["logprobs"] = True
        if not vllm:
            return body
        # vLLM takes every parameter that is missing here from the model's generation_config.json.
        return body | {
            "top_k": how.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": how.repetition_penalty,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "logit_bias": {str(token): -100.0 for token in self.reader.banned},
            "ignore_eos": True,  # the tokenizer's end token need not be one of the model's
            "stop_token_ids": list(self.reader.end_ids),
            "add_special_tokens": prompt.adds_special_tokens,
            **self._template_field(),
            "skip_special_tokens": True,
            "return_token_ids": True,
        }

    def _template_field(self) -> dict[str, Any]:
        """The field of vLLM's protocol with the chat template's arguments, if it needs any."""
        given = self.template_arguments
        return {"chat_template_kwargs": given} if given else {}

    def _compare(self, prompt: RequestPrompt, served: Sequence[int] | None) -> None:
        """Raise ConfigError if the server reads other tokens than training does."""
        is_usual = num_images(prompt.row) in self.compared and not prompt.has_own_place
        if served is None or (is_usual and len(served) == prompt.num_tokens):
            return
        arguments = self.reader.image_arguments
        self.reader.compare(
            prompt.row,
            served,
            reader="the server",
            where=self.server.url,
            fix=(f"{self.reader.weightless.limits}: {server_advice(arguments)}. " * bool(arguments))
            + "Serve the model of model.id with its own chat template and image sizes; vLLM may "
            "also not support this model's way to cut images into tokens",
        )
        self.compared.add(num_images(prompt.row))

    def _completions(self, reply: Reply, limit: int) -> list[Completion]:
        choices = sorted(reply.choices, key=lambda choice: choice.index)
        made = [self._completion(choice, limit) for choice in choices]
        if all(choice.token_ids is None for choice in choices) and (
            fault := length_fault(made, reply.counted_tokens, limit)
        ):
            raise Refused(fault)
        return made

    def _completion(self, choice: Choice, limit: int) -> Completion:
        reason, content = choice.finish_reason, choice.message.text
        if reason not in ("stop", "length"):
            raise Refused(f"the server ended an answer with finish_reason {reason!r}")
        if content is None and choice.token_ids is None:
            raise Refused(f"the server sent an answer without content (finish_reason {reason})")
        tokens = choice.logprobs.content if choice.logprobs else None
        logprobs = None if tokens is None else [token.logprob for token in tokens]
        if choice.token_ids is None:
            content = content or ""
            ids = self.reader.tokenise(content, ends=reason == "stop")
            if not ids:
                raise Refused("the server sent an empty answer with finish_reason 'length'")
        else:
            ids = self._check_ids(choice.token_ids, reason, limit)
            content = self.reader.decode(ids)
            if logprobs is not None and len(logprobs) != len(ids):
                logprobs = None
        return Completion(content, ids, reason, _sum(logprobs))

    def _check_thoughts(self, reply: Reply) -> None:
        """Raise ConfigError if thoughts are missing in a completion that has no token ids."""
        textual = [choice.message for choice in reply.choices if choice.token_ids is None]
        for message in textual:
            if message.thoughts:
                name, thoughts = message.thoughts
                raise self._without_thoughts(
                    f"took the model's thoughts out of its answer (message.{name}: "
                    f"{thoughts[:80]!r})"
                )
        number = reply.thought_tokens
        if number and not any(_holds_thoughts(message.text) for message in textual) and textual:
            raise self._without_thoughts(
                f"counts {number} tokens of thoughts (usage.completion_tokens_details) that its "
                "answer does not hold"
            )

    def _without_thoughts(self, what: str) -> ConfigError:
        return ConfigError(
            f"the server {what}, and returns no token ids: what the model drew is not known",
            where=self.server.url,
            fix="switch off the server's reasoning parser (start vLLM or SGLang without "
            "--reasoning-parser, llama.cpp with --reasoning-format none), so that the content "
            "holds the thoughts; or serve with a vLLM that returns token ids",
        )

    def _check_ids(self, ids: list[int], reason: str, limit: int) -> tuple[int, ...]:
        """Return the ids; raises Refused if this model cannot draw them with these settings."""
        reader = self.reader
        if any(i >= reader.vocab_size or i in reader.banned for i in ids):
            raise Refused("the server sent token ids that this model cannot draw")
        if reason == "stop" and not (ids and ids[-1] in reader.end_ids):
            last = ids[-1] if ids else None
            raise Refused(
                f"the server stopped at token {last}, which is not an end token of the model"
            )
        if len(ids) > limit or (reason == "length" and len(ids) < limit):
            raise Refused(ended_early(len(ids), limit))
        return tuple(ids)


def _holds_thoughts(text: str | None) -> bool:
    """Whether a text has marks of thoughts."""
    return text is not None and answer_text(text, Reading(tag=None)) != text


def _sum(logprobs: Sequence[float | None] | None) -> float | None:
    """Their sum in nats, or None if any is missing or not finite."""
    if logprobs is None or any(p is None for p in logprobs):
        return None
    total = math.fsum(p for p in logprobs if p is not None)
    return total if math.isfinite(total) else None
