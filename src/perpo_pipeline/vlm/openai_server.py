"""Requests to an OpenAI-compatible server: its URL and key, retries, and what refusals mean.

Sampling and judging share this client. The key is read only from the environment, sent only to the
given URL (redirects are not followed), and never shown.
"""

import asyncio
import base64
import io
import ipaddress
import json
import math
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from perpo_pipeline import advice
from perpo_pipeline.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    import httpx
    from PIL import Image

KEY_NAMES = ("PERPO_API_KEY", "OPENAI_API_KEY")
TRIES = {
    "busy": 6,  # about a minute
    "away": 12,  # about seven minutes, for a known server that restarts
}
FIRST_WAIT_S, LONGEST_WAIT_S = 2.0, 60.0  # the wait doubles at each try
LONGEST_RETRY_AFTER_S = 300.0  # longer waits that a server asks for are shortened
CONNECT_S, LIST_S, ANSWER_S = 10.0, 30.0, 600.0
RETRIED = frozenset({408, 409, 429})  # and 5xx
# Faults that concern every prompt: the URL (3xx, 404, 405), the key, the account, the model (404).
FATAL = frozenset({401, 402, 403, 404, 405})
SHOWN_TEXT = 500  # characters of a server's message


class Refused(Exception):
    """One prompt gets no usable answer; the message says why."""


class Wire(BaseModel):
    """A message from a server, checked strictly; unknown fields are ignored."""

    model_config = ConfigDict(strict=True)


Answer = TypeVar("Answer", bound=Wire)

_THOUGHT_PARTS = ("thinking", "reasoning")


class Message(Wire):
    """An assistant's message; servers may put its thoughts beside the content, or in parts of it.

    Thoughts are in `reasoning_content` (DeepSeek, SGLang, older vLLM), `reasoning` (vLLM,
    OpenRouter), `reasoning_details` (OpenRouter, perhaps encrypted) or parts of the content
    (Mistral).
    """

    content: str | list[Any] | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    reasoning_details: Any = None

    @property
    def text(self) -> str | None:
        """The content without thoughts beside it; the texts of a list of parts, joined."""
        if not isinstance(self.content, list):
            return self.content
        texts = [part.get("text") for part in self._parts("text")]
        return "".join(text for text in texts if isinstance(text, str)) if texts else None

    @property
    def thoughts(self) -> tuple[str, str] | None:
        """Thoughts that are not in `text`: the name of their field, and what it holds."""
        for name in ("reasoning_content", "reasoning", "reasoning_details"):
            if found := getattr(self, name):
                return name, str(found)
        parts = [part for kind in _THOUGHT_PARTS for part in self._parts(kind)]
        return ("content", str(parts[0])) if parts else None

    def _parts(self, kind: str) -> list[dict[str, Any]]:
        parts = self.content if isinstance(self.content, list) else []
        return [part for part in parts if isinstance(part, dict) and part.get("type") == kind]


class _Listed(Wire):
    id: str
    owned_by: str | None = None


class _ModelList(Wire):
    data: list[_Listed] | None


class Server:
    """A connection to one server and one of its models.

    `stage` and `named_by` (the setting that names the model) appear in messages. `limit_name` is
    the server's name for max_tokens. `gives_logprobs` becomes false once the server refuses a
    request because of log-probabilities; the caller sets `gives_n` to false once the server returns
    one choice where several were asked for. `listed` are the models that it lists.
    """

    def __init__(
        self,
        base_url: str | None,
        model: str,
        *,
        stage: str = "sample",
        named_by: str = "served_model",
    ) -> None:
        _require_httpx()
        self.stage, self.named_by = stage, named_by
        self.url, self.model = _checked_url(base_url), model
        self.key, self.key_name = _key()
        self.is_vllm, self.is_away, self.limit_name = False, False, "max_tokens"
        self.gives_logprobs, self.gives_n = True, True
        self.listed: tuple[str, ...] = ()

    def client(self, answer_s: float = ANSWER_S) -> "httpx.AsyncClient":
        """A client that waits `answer_s` seconds for an answer; the caller closes it."""
        import httpx

        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(answer_s, connect=CONNECT_S, pool=None),
            limits=httpx.Limits(),  # no limits: the caller bounds concurrent requests
            trust_env=not _is_loopback(self.url),  # a proxy cannot reach this machine's loopback
        )

    async def identify(self) -> None:
        """First contact: list the models, and find out whether vLLM serves ours.

        Raises ConfigError if the server cannot be reached or used, or is vLLM without our model.
        """
        async with self.client(LIST_S) as client:
            try:
                response = await self._exchange(client, "GET", "/models", is_first=True)
                if response.status_code in (404, 405):
                    return  # the list is optional in the protocol: the first prompt will show
                models = _ModelList.model_validate_json(self._good_body(response)).data or []
            except Refused as error:
                raise self._unusable(f"the server does not list its models: {error}") from None
            except ValidationError:
                raise self._unusable("this is not an OpenAI-compatible server") from None
        self.listed = tuple(model.id for model in models)
        of_vllm = [model.id for model in models if model.owned_by == "vllm"]
        self.is_vllm = self.model in of_vllm
        if models and len(of_vllm) == len(models) and not self.is_vllm:  # vLLM lists all it has
            raise self._model_missing("")

    async def ask(self, client: "httpx.AsyncClient", body: dict[str, Any]) -> bytes:
        """Send one request for completions and return the body of the answer.

        Raises Refused if only this prompt fails, ConfigError if all prompts would.
        """
        response = await self._exchange(client, "POST", "/chat/completions", body)
        if (
            response.status_code == 400
            and "max_tokens" in body
            and "max_completion_tokens" in response.text
        ):
            newer = "max_completion_tokens"
            others = {name: value for name, value in body.items() if name != "max_tokens"}
            answer = await self.ask(client, others | {newer: body["max_tokens"]})
            # Not before that answer: a refusal of a long prompt may name both fields.
            self.limit_name = newer
            return answer
        if (
            response.status_code in (400, 422)
            and "logprobs" in body
            and "logprobs" in response.text
        ):
            others = {name: value for name, value in body.items() if name != "logprobs"}
            answer = await self.ask(client, others)
            # Not before that answer: other refusals may quote the whole request.
            self.gives_logprobs = False
            return answer
        return self._good_body(response)

    async def _exchange(
        self,
        client: "httpx.AsyncClient",
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        is_first: bool = False,
    ) -> "httpx.Response":
        """Retry until a response is final; raises Refused or ConfigError after the last try."""
        import httpx

        sent = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        tries = dict.fromkeys(TRIES, 0)
        while True:
            kind, retry_after_s = "busy", None
            try:
                response = await client.request(
                    method, self.url + path, content=sent, headers=headers
                )
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
                kind, fault = "away", f"{type(error).__name__}: {error}"
            except httpx.RequestError as error:
                fault = f"{type(error).__name__}: {error}"
            else:
                response.status_code = status = _status_of(response)
                self.is_away = False
                if status not in RETRIED and status < 500:
                    return response
                fault = f"HTTP {status}: {self._message_in(response)}"
                retry_after_s = _retry_after(response.headers.get("Retry-After"))
            tries[kind] += 1
            is_last = tries[kind] == TRIES[kind] or (kind == "away" and is_first)
            self._give_up_or_wait(kind, self._clean(fault), tries[kind], is_last=is_last)
            wait_s = min(FIRST_WAIT_S * 2 ** (tries[kind] - 1), LONGEST_WAIT_S)
            await asyncio.sleep((retry_after_s or wait_s) * random.uniform(1, 1.25))

    def _give_up_or_wait(self, kind: str, fault: str, tries: int, *, is_last: bool) -> None:
        """Raise after the last try; print once that we wait for a server that cannot be reached."""
        if is_last and kind == "busy":
            raise Refused(f"the server gave no answer in {tries} tries; the last one: {fault}")
        if is_last:
            raise self._unusable(
                f"the server cannot be reached ({fault})",
                "start it, or correct base_url; the same command resumes where it stopped",
            )
        if kind == "away" and not self.is_away:
            self.is_away = True
            print(f"{self.stage}: waiting for {self.url} ({fault})", file=sys.stderr, flush=True)

    def _good_body(self, response: "httpx.Response") -> bytes:
        """The body of a 2xx response; raises Refused or ConfigError for any other."""
        status = response.status_code
        if 200 <= status < 300:
            return response.content
        message = f"HTTP {status}: {self._message_in(response)}"
        if not (status < 400 or status in FATAL):
            raise Refused(f"the server refused the request ({message})")
        if status in (401, 402, 403):
            used = f"the key in {self.key_name}" if self.key_name else "a request without a key"
            raise self._unusable(
                f"the server refuses {used} ({message})",
                f"set {KEY_NAMES[0]} to a key that may use {self.model!r}",
            )
        raise self._model_missing(f" ({message})")

    def _model_missing(self, message: str) -> ConfigError:
        listed = f"; it has {self._clean(', '.join(self.listed))}" if self.listed else ""
        return self._unusable(
            f"the server has no chat completions of {self.model!r} at this URL{message}{listed}",
            f"correct base_url (it usually ends with /v1) or {self.named_by}",
        )

    def _unusable(self, what: str, fix: str = "correct base_url") -> ConfigError:
        return ConfigError(what, where=self.url, fix=fix)

    def _message_in(self, response: "httpx.Response") -> str:
        """The error message in a response, or the whole response."""
        try:
            found = response.json()
        except ValueError:
            return self._clean(response.text)
        for name in ("error", "message", "detail"):
            if isinstance(found, dict) and found.get(name):
                found = found[name]
        return self._clean(found if isinstance(found, str) else json.dumps(found))

    def _clean(self, text: str) -> str:
        """The text as one printable line of bounded length, without the key."""
        if self.key:
            text = text.replace(self.key, "(the key)")
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:SHOWN_TEXT]


def _status_of(response: "httpx.Response") -> int:
    """The HTTP status, or that of an error in the body of a 200, as OpenRouter sends it.

    A 403 there is a prompt that its moderation refused. Such an error, and one without a status of
    its own, is about the request (400).
    """
    status = response.status_code
    if not 200 <= status < 300 or b'"error"' not in response.content:
        return status
    try:
        found = response.json()
    except (ValueError, RecursionError):
        return status
    if not isinstance(found, dict) or not found.get("error") or found.get("choices"):
        return status
    error = found["error"]
    code = error.get("code") if isinstance(error, dict) else None
    is_of_all = isinstance(code, int) and (code in {401, 402, *RETRIED} or 500 <= code < 600)
    return int(code) if code is not None and is_of_all else 400


def read_answer(answer: bytes, kind: type[Answer]) -> Answer:
    """Check a server's answer; raises Refused if it does not have the expected form."""
    try:
        return kind.model_validate_json(answer)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"]) or "the whole answer"
        raise Refused(f"the server's answer is malformed: {where}: {fault['msg']}") from None


def image_message(urls: Sequence[str], texts: Sequence[str]) -> dict[str, Any]:
    """A user's message with images between its texts, of which there is one more."""
    parts: list[dict[str, Any]] = []
    for url, text in zip((None, *urls), texts, strict=True):
        parts += [] if url is None else [{"type": "image_url", "image_url": {"url": url}}]
        parts += [{"type": "text", "text": text}] if text else []
    return {"role": "user", "content": parts}


def png_url(image: "Image.Image") -> str:
    """The pixels of an image as a data URL."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)  # the fastest; every level is lossless
    return data_url(file.getvalue(), "image/png")


def data_url(data: bytes, kind: str) -> str:
    """A file as a data URL; `kind` is its MIME type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _require_httpx() -> None:
    try:
        import httpx  # noqa: F401
    except ImportError:
        raise MissingDependencyError(
            "requests to a server need httpx, which is not installed",
            fix=advice.install("openai"),
        ) from None


def _checked_url(base_url: str | None) -> str:
    """The URL without a trailing slash; raises ConfigError if it cannot be used."""
    import httpx

    fix = "give --base-url (or base_url in the section), such as http://127.0.0.1:8000/v1"
    if not base_url:
        raise ConfigError("a server needs its base_url, and none is set", fix=fix)
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL:
        url = httpx.URL()
    # The URL is not shown before it is known to hold no password.
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError("base_url is not an http:// or https:// URL", fix=fix)
    if url.userinfo or url.query or url.fragment:
        raise ConfigError(
            "base_url holds a user name, a password or a query",
            fix=f"remove them; a key belongs in the environment variable {KEY_NAMES[0]}",
        )
    return str(url).rstrip("/")


def _key() -> tuple[str | None, str | None]:
    """The key and the name of its environment variable; a local server needs none."""
    for name in KEY_NAMES:
        key = os.environ.get(name, "").strip()
        if key and not (key.isascii() and key.isprintable()):
            raise ConfigError(f"{name} holds characters that are not allowed in an HTTP header")
        if key:
            return key, name
    return None, None


def _is_loopback(url: str) -> bool:
    import httpx

    host = httpx.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _retry_after(value: str | None) -> float | None:
    """Seconds that a server asks us to wait, from a number or a date (RFC 9110, 10.2.3)."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S) if math.isfinite(seconds) else None
