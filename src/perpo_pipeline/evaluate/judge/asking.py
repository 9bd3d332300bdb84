"""Asks a judge behind an OpenAI-compatible server: text only, at temperature 0."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perpo_pipeline.errors import InputError
from perpo_pipeline.evaluate.judge.task import Question
from perpo_pipeline.vlm.openai_server import Refused, Server, Wire, read_answer

if TYPE_CHECKING:
    import httpx


class _Message(Wire):
    content: str | None = None


class _Choice(Wire):
    message: _Message
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

        async def one(question: Question) -> None:
            async with slots:
                if len(failures) > judge.max_errors:
                    return
                try:
                    reply = await _ask(server, client, judge, question)
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


async def _ask(
    server: Server, client: "httpx.AsyncClient", judge: Judge, question: Question
) -> Reply:
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": question.prompt}],
        "temperature": 0.0,
        server.limit_name: judge.max_tokens,
    }
    if server.is_vllm:  # otherwise vLLM takes it from the model's generation_config.json
        body["repetition_penalty"] = 1.0
    answer = read_answer(await server.ask(client, body), _Answer)
    if len(answer.choices) != 1:
        raise Refused(f"the server returned {len(answer.choices)} choices instead of 1")
    choice = answer.choices[0]
    if not choice.message.content:
        raise Refused(
            f"the reply is empty (finish_reason {choice.finish_reason}); a judge that thinks "
            f"first may need more than --max-tokens {judge.max_tokens}"
        )
    return Reply(choice.message.content, choice.finish_reason)
