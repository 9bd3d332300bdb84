"""Asks a judge behind an OpenAI-compatible server, at temperature 0, with an image or without."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from perpo_pipeline.errors import ConfigError, InputError, PerpoError
from perpo_pipeline.evaluate.judge.images import image_url
from perpo_pipeline.evaluate.judge.task import Question
from perpo_pipeline.vlm.openai_server import (
    Message,
    Refused,
    Server,
    Wire,
    image_message,
    png_url,
    read_answer,
)

if TYPE_CHECKING:
    import httpx

PROBE = "Reply with the word yes."


class _Choice(Wire):
    message: Message
    finish_reason: str | None = None


class _Answer(Wire):
    choices: list[_Choice]


@dataclass(frozen=True)
class Judge:
    """The judge's server and model; `max_tokens` limits a reply, `concurrency` open requests."""

    base_url: str
    model: str
    max_tokens: int
    concurrency: int
    max_errors: int


@dataclass(frozen=True)
class Reply:
    """The judge's reply to one question."""

    text: str
    finish_reason: str | None


Done = Callable[[Question, Reply], None]
Failures = list[tuple[Question, str]]


def ask_all(judge: Judge, questions: Sequence[Question], done: Done) -> Failures:
    """Ask every question, pass each reply to `done`, return questions without reply, with reasons.

    Raises ConfigError if the server, the key or the model's name is wrong for all questions, and
    InputError once more than `max_errors` have failed; open requests end first.
    """
    server = Server(judge.base_url, judge.model, stage="judge", named_by="--judge-model")
    asyncio.run(server.identify())
    failures: Failures = []
    asyncio.run(_ask_all(server, judge, questions, done, failures))
    if len(failures) > judge.max_errors:
        question, reason = failures[0]
        raise InputError(
            f"{len(failures)} questions got no reply (max_errors {judge.max_errors}), for instance "
            f"{question.item_id!r}: {reason}",
            where=server.url,
            fix="the replies so far are stored: the same command asks only the other questions; "
            "--max-errors N continues without N replies",
        )
    return failures


async def _ask_all(
    server: Server, judge: Judge, questions: Sequence[Question], done: Done, failures: Failures
) -> None:
    slots = asyncio.Semaphore(judge.concurrency)
    async with server.client() as client:
        asking = _Asking(server, client, judge)

        async def one(question: Question) -> None:
            async with slots:
                if len(failures) > judge.max_errors:
                    return
                try:
                    reply = await asking.ask(question)
                except Refused as error:
                    failures.append((question, str(error)))
                else:
                    done(question, reply)

        try:
            async with asyncio.TaskGroup() as group:  # one error cancels the other requests
                for question in questions:
                    group.create_task(one(question))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None


class _Asking:
    """Asks single questions; finds out whether a server that refuses one refuses all images."""

    def __init__(self, server: Server, client: "httpx.AsyncClient", judge: Judge) -> None:
        self.server, self.client, self.judge = server, client, judge
        self.takes_images = False  # unknown, until a reply to an image shows it
        self.lock = asyncio.Lock()

    async def ask(self, question: Question) -> Reply:
        """The reply to one question; raises Refused or ConfigError."""
        try:
            answer = await self._post(await asyncio.to_thread(_message, question))
        except (Refused, ConfigError) as refusal:
            if question.image is not None and not self.server.is_away:
                async with self.lock:
                    await self._check_images(refusal)
            raise
        self.takes_images |= question.image is not None
        return self._reply(answer)

    async def _check_images(self, refusal: Exception) -> None:
        """Raise ConfigError if the server answers a text, but not with an image beside it."""
        if self.takes_images:
            return
        try:
            await self._post(
                image_message([png_url(Image.new("RGB", (64, 64), "grey"))], ("", PROBE))
            )
        except (Refused, ConfigError) as error:
            shown = error.what if isinstance(error, ConfigError) else str(error)
            try:
                await self._post({"role": "user", "content": PROBE})
            except (Refused, ConfigError):
                return  # then it is not because of the image
            raise ConfigError(
                f"the judge {self.server.model!r} answers a text, but not a text with an image: "
                f"{shown}",
                where=self.server.url,
                fix="give a --judge-model that takes images (a server may need to be started with "
                "its vision part, as llama.cpp with --mmproj), or leave out --with-image",
            ) from refusal
        self.takes_images = True

    async def _post(self, message: Mapping[str, Any]) -> bytes:
        body = {
            "model": self.server.model,
            "messages": [message],
            "temperature": 0.0,
            self.server.limit_name: self.judge.max_tokens,
        }
        if self.server.is_vllm:  # otherwise vLLM takes it from the model's generation_config.json
            body["repetition_penalty"] = 1.0
        return await self.server.ask(self.client, body)

    def _reply(self, body: bytes) -> Reply:
        answer = read_answer(body, _Answer)
        if len(answer.choices) != 1:
            raise Refused(f"the server returned {len(answer.choices)} choices instead of 1")
        choice = answer.choices[0]
        if not choice.message.text:
            raise Refused(
                f"the reply is empty (finish_reason {choice.finish_reason}); a judge that thinks "
                f"first may need more than --max-tokens {self.judge.max_tokens}"
            )
        return Reply(choice.message.text, choice.finish_reason)


def _message(question: Question) -> dict[str, Any]:
    if question.image is None:
        return {"role": "user", "content": question.prompt}
    try:
        return image_message([image_url(question.image)], ("", question.prompt))
    except (PerpoError, OSError) as error:  # the file has changed since it was checked
        raise Refused(f"the image {question.image.path} cannot be read: {error}") from error
