"""How an OpenAI-compatible server is asked: its URL and key, retries, and what refusals mean.

Sampling and judging share it. The key is read from the environment alone. It is sent to the given
URL only (redirects are not followed) and never shown.
"""

import asyncio
import ipaddress
import json
import math
import os
import random
import sys
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from perpo_pipeline.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    import httpx

KEY_NAMES = ("PERPO_API_KEY", "OPENAI_API_KEY")
TRIES = {
    "busy": 6,  # about a minute
    "away": 12,  # about seven minutes, for a server that was there and restarts
}
FIRST_WAIT_S, LONGEST_WAIT_S = 2.0, 60.0  # doubled at each try
LONGEST_ASKED_S = 300.0  # of the waits a server asks for
CONNECT_S, LIST_S, ANSWER_S = 10.0, 30.0, 600.0
RETRIED = frozenset({408, 409, 429})  # and 5xx
# Wrong for every prompt: the URL (3xx, 404, 405), the key, the account, the model (404).
FATAL = frozenset({401, 402, 403, 404, 405})
SAY_FIRST = 500  # characters of what a server says


class Refused(Exception):
    """One prompt gets no usable answer; says why."""


class Wire(BaseModel):
    """What a server sends, checked strictly; fields that are not used are left alone."""

    model_config = ConfigDict(strict=True)


Answer = TypeVar("Answer", bound=Wire)


class _Listed(Wire):
    id: str
    owned_by: str | None = None


class _ModelList(Wire):
    data: list[_Listed] | None


class Server:
    """Where the server is and how it is asked: retries, and what its refusals mean.

    `stage` and `named_by` (the setting that names the model) are for messages. `limit_name` is how
    it wants the longest answer named; `gives_logprobs` is false once it was found
    to refuse requests for the sake of log-probabilities; `listed` the models it says it has.
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
        self.gives_logprobs = True
        self.listed: tuple[str, ...] = ()

    def client(self, answer_s: float = ANSWER_S) -> "httpx.AsyncClient":
        """A client to be closed by the caller; it waits `answer_s` seconds for an answer."""
        import httpx

        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(answer_s, connect=CONNECT_S, pool=None),
            limits=httpx.Limits(),  # none: the caller bounds requests at a time
            trust_env=not _is_loopback(self.url),  # a proxy does not lead back to this machine
        )

    async def identify(self) -> None:
        """Ask which models there are, and whether vLLM serves ours; the first contact."""
        async with self.client(LIST_S) as client:
            try:
                response = await self._exchange(client, "GET", "/models", is_first=True)
                if response.status_code in (404, 405):
                    return  # an optional part of the protocol: the first prompt will tell
                models = _ModelList.model_validate_json(self._judge(response)).data or []
            except Refused as error:
                raise self._unusable(f"the server does not list its models: {error}") from None
            except ValidationError:
                raise self._unusable("this is no OpenAI-compatible server") from None
        self.listed = tuple(model.id for model in models)
        of_vllm = [model.id for model in models if model.owned_by == "vllm"]
        self.is_vllm = self.model in of_vllm
        if models and len(of_vllm) == len(models) and not self.is_vllm:  # it lists all it has
            raise self._no_model("")

    async def ask(self, client: "httpx.AsyncClient", body: dict[str, Any]) -> bytes:
        """Send one request for completions; the answer's body.

        Raises Refused where only this prompt is concerned, ConfigError where all are.
        """
        response = await self._exchange(client, "POST", "/chat/completions", body)
        if (
            response.status_code == 400
            and "max_tokens" in body
            and "max_completion_tokens" in response.text
        ):
            self.limit_name = "max_completion_tokens"
            others = {name: value for name, value in body.items() if name != "max_tokens"}
            return await self.ask(client, others | {self.limit_name: body["max_tokens"]})
        if (
            response.status_code in (400, 422)
            and "logprobs" in body
            and "logprobs" in response.text
        ):
            others = {name: value for name, value in body.items() if name != "logprobs"}
            answer = await self.ask(client, others)
            self.gives_logprobs = False  # only now: refusals may quote the whole request
            return answer
        return self._judge(response)

    async def _exchange(
        self,
        client: "httpx.AsyncClient",
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        is_first: bool = False,
    ) -> "httpx.Response":
        """The first response that is not worth another try; raises when tries are used up."""
        import httpx

        sent = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        tries = dict.fromkeys(TRIES, 0)
        while True:
            kind, asked = "busy", None
            try:
                response = await client.request(
                    method, self.url + path, content=sent, headers=headers
                )
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
                kind, trouble = "away", f"{type(error).__name__}: {error}"
            except httpx.RequestError as error:
                trouble = f"{type(error).__name__}: {error}"
            else:
                self.is_away, status = False, response.status_code
                if status not in RETRIED and status < 500:
                    return response
                trouble = f"HTTP {status}: {self._said(response)}"
                asked = _retry_after(response.headers.get("Retry-After"))
            tries[kind] += 1
            is_last = tries[kind] == TRIES[kind] or (kind == "away" and is_first)
            self._tell(kind, self._clean(trouble), tries[kind], is_last=is_last)
            own = min(FIRST_WAIT_S * 2 ** (tries[kind] - 1), LONGEST_WAIT_S)
            await asyncio.sleep((asked or own) * random.uniform(1, 1.25))

    def _tell(self, kind: str, trouble: str, tries: int, *, is_last: bool) -> None:
        """Raise what a last try without an answer means; say once that the server is waited for."""
        if is_last and kind == "busy":
            raise Refused(f"the server gave no answer in {tries} tries, the last: {trouble}")
        if is_last:
            raise self._unusable(
                f"the server cannot be reached ({trouble})",
                "start it, or correct base_url; the same command goes on where it stopped",
            )
        if kind == "away" and not self.is_away:
            self.is_away = True
            told = f"{self.stage}: waiting for {self.url} ({trouble})"
            print(told, file=sys.stderr, flush=True)

    def _judge(self, response: "httpx.Response") -> bytes:
        """The body of a good answer; raises what a bad one means."""
        status = response.status_code
        if 200 <= status < 300:
            return response.content
        said = f"HTTP {status}: {self._said(response)}"
        if not (status < 400 or status in FATAL):
            raise Refused(f"the server refused the request ({said})")
        if status in (401, 402, 403):
            used = f"the key in {self.key_name}" if self.key_name else "a request without a key"
            raise self._unusable(
                f"the server refuses {used} ({said})",
                f"put a key that may use {self.model!r} into {KEY_NAMES[0]}",
            )
        raise self._no_model(f" ({said})")

    def _no_model(self, said: str) -> ConfigError:
        there = f"; it has {self._clean(', '.join(self.listed))}" if self.listed else ""
        return self._unusable(
            f"the server has no chat completions of {self.model!r} there{said}{there}",
            f"correct base_url (it usually ends with /v1) or {self.named_by}",
        )

    def _unusable(self, what: str, fix: str = "correct base_url") -> ConfigError:
        return ConfigError(what, where=self.url, fix=fix)

    def _said(self, response: "httpx.Response") -> str:
        """The server's own words, where it has some."""
        try:
            said = response.json()
        except ValueError:
            return self._clean(response.text)
        for name in ("error", "message", "detail"):
            if isinstance(said, dict) and said.get(name):
                said = said[name]
        return self._clean(said if isinstance(said, str) else json.dumps(said))

    def _clean(self, text: str) -> str:
        """One printable line of bounded length, without the key."""
        if self.key:
            text = text.replace(self.key, "(the key)")
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:SAY_FIRST]


def read_answer(answer: bytes, kind: type[Answer]) -> Answer:
    """What a server answered, checked; raises Refused where it is not as it should be."""
    try:
        return kind.model_validate_json(answer)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"]) or "the whole"
        raise Refused(
            f"the server's answer is not as it should be: {where}: {fault['msg']}"
        ) from None


def _require_httpx() -> None:
    try:
        import httpx  # noqa: F401
    except ImportError:
        raise MissingDependencyError(
            "asking a server needs httpx, which is not installed",
            fix="pip install -c constraints.txt -e '.[openai]'",
        ) from None


def _checked_url(base_url: str | None) -> str:
    """The URL without a slash at its end; ConfigError for one that cannot be used."""
    import httpx

    fix = "give --base-url (for sampling also sample.base_url), e.g. http://127.0.0.1:8000/v1"
    if not base_url:
        raise ConfigError("a server to be asked needs its base_url", fix=fix)
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL:
        url = httpx.URL()
    # It is never shown before it is known to hold no password.
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError("base_url is no http:// or https:// URL", fix=fix)
    if url.userinfo or url.query or url.fragment:
        raise ConfigError(
            "base_url holds a name, a password or a query",
            fix=f"leave them out; a key belongs into {KEY_NAMES[0]} in the environment",
        )
    return str(url).rstrip("/")


def _key() -> tuple[str | None, str | None]:
    """The key and the name of the variable that holds it; none is fine for a local server."""
    for name in KEY_NAMES:
        key = os.environ.get(name, "").strip()
        if key and not (key.isascii() and key.isprintable()):
            raise ConfigError(f"{name} holds characters that no HTTP header may hold")
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
    """Seconds that a server asks to wait: a number or a date (RFC 9110, 10.2.3)."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), LONGEST_ASKED_S) if math.isfinite(seconds) else None
