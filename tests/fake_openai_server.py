"""Real HTTP servers on loopback that behave like vLLM, like another server, or badly."""

import base64
import io
import json
import random
import select
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image
from tiny_models import tiny_tokenizer

from perpo_pipeline.vlm.processors import load_processor

END, IMAGE_ID, MAX_NEW = 2, 3, 6
WORDS = tiny_tokenizer()

Json = dict[str, Any]
# (body of the request, how often its messages were sent) -> the answer
Answer = Callable[[Json, int], "Json | Reply | None"]


class Reply:
    """An answer other than 200 with JSON; `None` instead of one breaks the connection off."""

    def __init__(self, status: int, body: Any = "", **headers: str) -> None:
        self.status, self.headers = status, headers
        self.body = body if isinstance(body, str) else json.dumps(body)


UNANSWERED = Reply(0)  # the server waits until the client closes the connection
LONGEST_WAIT_S = 120


class Server:
    """Answers with `answer`; records every request and how many ran at once."""

    def __init__(self, answer: Answer, *, owned_by: str = "vllm", model: str = "tiny") -> None:
        self.answer = answer
        self.models: Any = {"object": "list", "data": [{"id": model, "owned_by": owned_by}]}
        self.bodies: list[Json] = []
        self.headers: list[dict[str, str]] = []
        self.at: list[float] = []
        self.paths: list[str] = []
        self.seen: Counter[str] = Counter()
        self.running = self.most_running = 0
        self.lock = threading.Lock()
        self.hung_up = threading.Event()
        self.start(0)

    def start(self, port: int) -> None:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                fake.paths.append(self.path)
                fake.headers.append(dict(self.headers))
                models = fake.models
                self.reply(models if isinstance(models, Reply) else Reply(200, models))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with fake.lock:
                    fake.paths.append(self.path)
                    fake.bodies.append(body)
                    fake.headers.append(dict(self.headers))
                    fake.at.append(time.monotonic())
                    key = json.dumps(body["messages"])
                    fake.seen[key] += 1
                    number = fake.seen[key]
                    fake.running += 1
                    fake.most_running = max(fake.most_running, fake.running)
                try:
                    answer = fake.answer(body, number)
                finally:
                    with fake.lock:
                        fake.running -= 1
                wait_s = LONGEST_WAIT_S if answer is UNANSWERED else 0
                if select.select([self.connection], [], [], wait_s)[0]:
                    fake.hung_up.set()
                    self.close_connection = True
                elif answer is None or answer is UNANSWERED:
                    self.close_connection = True
                else:
                    self.reply(answer if isinstance(answer, Reply) else Reply(200, answer))

            def reply(self, reply: Reply) -> None:
                data = reply.body.encode()
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def drawn_ids(seed: int, index: int) -> list[int]:
    """Token ids of answer `index` to a request with `seed`; they end early or at the limit."""
    dice = random.Random(f"{seed}/{index}")
    ids = [dice.randrange(4, 300) for _ in range(dice.randint(0, MAX_NEW))]
    return ids if len(ids) == MAX_NEW else [*ids, END]


def choice(index: int, ids: list[int], **changes: Any) -> Json:
    """One choice as vLLM sends it."""
    made = {
        "index": index,
        "message": {"role": "assistant", "content": WORDS.decode(ids, skip_special_tokens=True)},
        "finish_reason": "stop" if ids and ids[-1] == END else "length",
        "logprobs": {"content": [{"token": "x", "logprob": -0.25, "bytes": None} for _ in ids]},
        "stop_reason": None,
        "token_ids": ids,
    }
    return made | changes


def without_ids(reply: Json) -> Json:
    """The same reply as a server other than vLLM sends it."""
    for made in reply["choices"]:
        del made["token_ids"], made["stop_reason"]
    reply.pop("prompt_token_ids", None)
    return reply


def with_thoughts(reply: Json, thoughts: str, name: str = "reasoning_content") -> Json:
    """The same reply as a server with a reasoning parser sends it."""
    for made in reply["choices"]:
        made["message"] = made["message"] | {name: thoughts}
    return reply


def ignores_n(answer: Answer) -> Answer:
    """A server that returns one choice, however many are asked for."""
    return lambda body, number: answer(body | {"n": 1}, number)


def refuses_n(answer: Answer, message: str = "'n' : number must be at most 1") -> Answer:
    """A server that refuses to return several choices."""

    def answer_one(body: Json, number: int) -> Json | Reply | None:
        if body["n"] > 1:
            return Reply(400, {"error": {"message": message}})
        return answer(body, number)

    return answer_one


def from_a_cache(body: Json, number: int) -> Json:
    """A server whose answer depends on the messages alone, and not on the seed."""
    ids = drawn_ids(len(json.dumps(body["messages"])), 0)
    return without_ids({"choices": [choice(i, ids) for i in range(body["n"])]})


def pictures(body: Json) -> list[Image.Image]:
    """The images of all turns, in their order."""
    found = []
    for turn in body["messages"]:
        for part in turn["content"] if isinstance(turn["content"], list) else []:
            if part["type"] == "image_url":
                head, data = part["image_url"]["url"].split(",", 1)
                assert head == "data:image/png;base64"
                found.append(Image.open(io.BytesIO(base64.b64decode(data, validate=True))))
    return found


def picture(body: Json) -> Image.Image:
    (image,) = pictures(body)
    return image


def make_like_vllm(model_dir: Path) -> Answer:
    """Renders and tokenises each request, parts in order, with the model's own processor."""
    processor = load_processor(model_dir)
    lock = threading.Lock()

    def answer(body: Json, number: int) -> Json:
        turns = []
        for turn in body["messages"]:
            said = turn["content"]
            said = [{"type": "text", "text": said}] if isinstance(said, str) else said
            parts = [{"type": "image"} if part["type"] == "image_url" else part for part in said]
            turns.append({**turn, "content": parts})
        shown = pictures(body)
        with lock:
            text = processor.apply_chat_template(
                turns,
                add_generation_prompt=True,
                **body.get("chat_template_kwargs", {}),
            )
            ids = processor(
                images=shown if len(shown) == 1 else [shown],
                text=[text],
                add_special_tokens=body["add_special_tokens"],
            )["input_ids"][0]
        choices = [choice(i, drawn_ids(body["seed"], i)) for i in range(body["n"])]
        return {"choices": choices, "prompt_token_ids": list(ids)}

    return answer
