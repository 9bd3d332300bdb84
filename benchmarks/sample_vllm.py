"""Our vLLM backend and a bare `LLM.generate` on one engine, with the same prompts (sample.py)."""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sample_ways import TEMPERATURE, EngineCase, Tokens
from tokenizers import Tokenizer, models, pre_tokenizers
from train_step_models import END, IMAGE, PAD, PATCH_PX, UNKNOWN, Shape, build_vlm
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.config.sample import SampleConfig
from perpo_pipeline.inference.backend import BackendSetup, Failure, Row
from perpo_pipeline.inference.vllm_backend import VllmBackend
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.inputs import prompt_image
from perpo_pipeline.vlm.prompts import encode_prompt, render_prompt, rendered_ids

IMAGE_PX = (640, 480)
WORDS = 18  # of the question; the template adds a few more
TEMPLATE = (
    "{% for message in messages %}w10 w11 {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %} {% endfor %}{% if add_generation_prompt %}w12 w13{% endif %}"
)


def save_hub_model(shape: Shape, directory: Path, dtype: torch.dtype, device: torch.device) -> Path:
    """Write a random LLaVA in the hub's layout; the words of its tokenizer are w0, w1, ..."""
    model: Any = build_vlm(shape, dtype, device)[1]
    model.save_pretrained(directory)
    for file in directory.glob("*.safetensors"):
        _name_tower_as_the_hub_does(file)
    words = {f"w{index}": index for index in range(shape.vocab)}
    special = {"<pad>": PAD, "<unk>": UNKNOWN, "</s>": END, "<image>": IMAGE}
    names = {index: word for word, index in (words | special).items()}
    backend = Tokenizer(models.WordLevel({n: i for i, n in names.items()}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )
    side = shape.tile_px
    images = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH_PX,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(directory)
    return directory


def make_rows(num: int, text: Callable[[int], str]) -> list[Row]:
    """Prompts with smooth JPEG images, which cost as much to decode as photographs."""
    rows: list[Row] = []
    for index in range(num):
        noise = np.random.default_rng(index).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise, "RGB").resize(IMAGE_PX).save(file, "JPEG", quality=90)
        data = file.getvalue()
        rows.append(
            {
                "prompt_id": f"prompt {index}",
                "image": {"bytes": data, "path": None},
                "image_sha256": hashlib.sha256(data).hexdigest(),
                "prompt": text(index),
            }
        )
    return rows


def random_words(vocab: int) -> Callable[[int], str]:
    """Questions from words in the vocabulary of save_hub_model's tokenizer."""

    def text(index: int) -> str:
        drawn = np.random.default_rng(index).integers(20, vocab, WORDS)
        return " ".join(f"w{word}" for word in drawn)

    return text


def question(index: int) -> str:
    """A question for models with a real tokenizer."""
    return (
        f"Where is the man with the red jacket number {index}? Answer with a box [x1, y1, x2, y2]."
    )


def open_backend(model: Path, scratch: Path, case: EngineCase, dtype: torch.dtype) -> VllmBackend:
    name = {torch.float32: "float32", torch.bfloat16: "bfloat16"}[dtype]
    backend = VllmBackend(
        BackendSetup(
            ModelConfig(id=str(model)),
            resolve_model(str(model)),
            {"dtype": name, "preprocess": "processor"},
            SampleConfig(
                num_samples=case.num_samples,
                temperature=TEMPERATURE,
                max_new_tokens=case.answer_tokens,
            ),
            scratch,
        )
    )
    backend.weightless.eos_token_ids = ()  # no token ends an answer
    return backend


def ways(backend: VllmBackend, rows: Sequence[Row]) -> Mapping[str, Callable[[], Tokens]]:
    """The ways to compare; each draws N completions of every row."""
    requests = bare_requests(backend, rows)

    def bare(*, detokenize: bool) -> Tokens:
        backend._empty_caches()  # as our backend does
        params = bare_params(backend, len(rows), detokenize)
        outputs = backend.llm.generate(requests, params, use_tqdm=False)
        return [y.token_ids for one in outputs for y in one.outputs]

    def ours() -> Tokens:
        drawn = []
        for one in backend.sample(rows, range(len(rows))):
            if isinstance(one, Failure):
                raise SystemExit(f"a prompt failed: {one.reason}")
            drawn += [y.token_ids for y in one.completions]
        return drawn

    return {
        "bare": partial(bare, detokenize=True),
        "bare-without-text": partial(bare, detokenize=False),
        "backend": ours,
    }


def bare_requests(backend: VllmBackend, rows: Sequence[Row]) -> list[Any]:
    """Rendered prompts with loaded images, as in vLLM's own examples."""
    requests = []
    for row in rows:
        text = render_prompt(backend.weightless, row["prompt"])
        ids = rendered_ids(backend.weightless, text)
        image = prompt_image(row)
        requests.append({"prompt_token_ids": ids, "multi_modal_data": {"image": image}})
    return requests


def bare_params(backend: VllmBackend, num: int, detokenize: bool) -> list[Any]:
    """The same distribution (except for image placeholders) with the same seeds."""
    sampling = backend.decoding
    return [
        backend.vllm.SamplingParams(
            n=sampling.num_samples,
            temperature=sampling.temperature,
            seed=index >> 1,
            logprobs=0,
            max_tokens=sampling.max_new_tokens,
            ignore_eos=True,
            detokenize=detokenize,
        )
        for index in range(num)
    ]


def prefix_tokens(backend: VllmBackend, row: Row) -> int:
    image, text = prompt_image(row), row["prompt"]
    return encode_prompt(backend.weightless, image, text).num_tokens


def engine_settings(backend: VllmBackend) -> dict[str, Any]:
    config = backend.llm.llm_engine.vllm_config
    return {
        "vllm": backend.vllm.__version__,
        "max_num_seqs": config.scheduler_config.max_num_seqs,
        "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "prefix_caching": config.cache_config.enable_prefix_caching,
    }


def _name_tower_as_the_hub_does(file: Path) -> None:
    """Add the `vision_model.` of CLIP, which a model that was never loaded lacks."""
    old, new = "vision_tower.", "vision_tower.vision_model."
    weights = {
        (new + name.removeprefix(old) if name.startswith(old) else name): value
        for name, value in load_file(file).items()
    }
    save_file(weights, file, metadata={"format": "pt"})
