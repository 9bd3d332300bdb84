"""`perpo merge --adapter-only` and the command on its card: what vLLM serves is what PEFT loads."""

import base64
import io
import json
import re
import shlex
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from PIL import Image
from tiny_adapters import save_adapter_artifact
from tiny_models import noise_image
from transformers import AutoModelForImageTextToText
from with_vllm.test_served import PART_S, Server

from perpo_pipeline.merge.folder import CARD
from perpo_pipeline.merge.merge_adapter import merge
from perpo_pipeline.vlm.processors import load_processor

MAX_NEW_TOKENS = 12
QUESTIONS = (
    ("Where is the red square?", noise_image(1, 80, 60)),
    ("leftmost circle", noise_image(2, 40, 90)),
)
Answer = tuple[list[int], torch.Tensor]  # ids of the tokens, and each one's log-probability in nats


def on_card(folder: Path) -> list[str]:
    """What follows `vllm serve` on the card of an adapter, as a shell reads it."""
    (found,) = re.findall(r"```\nvllm serve (.*?)```", (folder / CARD).read_text(), re.DOTALL)
    return shlex.split(found.replace("\\\n", " "))


def asked(server: Server, model: str, question: str, image: Image.Image) -> Answer:
    """The greedy answer of a served model, over HTTP."""
    file = io.BytesIO()
    image.save(file, "PNG")
    address = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": address}}]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}],
        "max_tokens": MAX_NEW_TOKENS,
        "temperature": 0,
        "logprobs": True,
        "return_token_ids": True,
        "add_special_tokens": True,  # as the card says
    }
    request = urllib.request.Request(
        f"{server.url}/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=PART_S) as reply:
        choice = json.load(reply)["choices"][0]
    logprobs = [token["logprob"] for token in choice["logprobs"]["content"]]
    return choice["token_ids"], torch.tensor(logprobs)


def generated(model: Any, processor: Any, question: str, image: Image.Image) -> Answer:
    """The greedy answer in transformers, with the lines of the card."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    found = model.generate(
        **inputs,
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    ids = found.sequences[0, inputs["input_ids"].shape[1] :]
    logprobs = torch.cat(found.logits).log_softmax(1)
    return ids.tolist(), logprobs.gather(1, ids[:, None])[:, 0]


def test_the_command_of_the_card_serves_the_adapter_as_peft_loads_it(
    hub_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """One server has the base under its own name and the adapter under its method's."""
    base, folder = hub_model("llava"), tmp_path / "adapter"
    merge(save_adapter_artifact(base, tmp_path / "artifact"), folder, adapter_only=True)
    places = {"BASE": str(base), "perpo=FOLDER": f"perpo={folder}"}
    assert '`"add_special_tokens": true`' in (folder / CARD).read_text()
    server = Server(tmp_path / "log", *(places.get(word, word) for word in on_card(folder)))
    try:
        served = [asked(server, name, *q) for name in (str(base), "perpo") for q in QUESTIONS]
    finally:
        server.kill()
    processor = load_processor(base)
    build: Any = AutoModelForImageTextToText
    plain = build.from_pretrained(base, dtype=torch.float32).eval()
    expected = [generated(plain, processor, *q) for q in QUESTIONS]
    with_adapter = PeftModel.from_pretrained(plain, str(folder)).eval()
    expected += [generated(with_adapter, processor, *q) for q in QUESTIONS]
    assert [ids for ids, _ in served] == [ids for ids, _ in expected]
    for (_, logps), (_, others) in zip(served, expected, strict=True):
        assert (logps - others).abs().max() < 1e-4
    first = [logps[0] for _, logps in served[:: len(QUESTIONS)]]
    assert (first[0] - first[1]).abs() > 1e-2, "the adapter changes the answers"
