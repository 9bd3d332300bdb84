"""The ways in which sample.py draws N completions per prompt with transformers.

Every way gets the same encoded prompts and draws from softmax(logits / T). No token ends an answer,
so all ways draw the same number of tokens: the model's generation_config has no end token (for
`generate`), and the `Vlm` has one that does not exist (for `sample_lists`).
"""

import gc
import inspect
import multiprocessing
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from train_step_models import Regime, Shape, build_vlm, random_lists
from transformers import GenerationConfig

from perpo_pipeline.prepare.testbed import render_prompts
from perpo_pipeline.testbed import testbed_settings
from perpo_pipeline.vlm.decoding import sample_lists
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.inputs import encode_row
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.models import EncodedPrompt, Vlm
from perpo_pipeline.vlm.tensors import cast_tensors, stack_image_tensors

NO_TOKEN = -1
TEMPERATURE = 0.5
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """N completions of `answer_tokens` for each of `prompts` prompts, read together in one batch.

    `regime` describes a random model and its prompts; None is the shipped testbed model.
    """

    regime: Regime | None
    prompts: int
    answer_tokens: int
    num_samples: int = 20


@dataclass(frozen=True)
class EngineCase:
    """A case for vLLM: the shape of a random LLaVA, and the number of prompts per round."""

    shape: Shape
    prompts: int
    answer_tokens: int
    num_samples: int = 20


@dataclass(frozen=True)
class Scene:
    """A model on a device, with its prompts."""

    case: Case
    vlm: Vlm
    prompts: Sequence[EncodedPrompt]

    @property
    def prefix_tokens(self) -> int:
        return max(prompt.num_tokens for prompt in self.prompts)


Tokens = Sequence[Sequence[int]]  # of every completion, prompt by prompt
Way = Callable[[Scene], Tokens]


def set_scene(case: Case, dtype: torch.dtype, device: torch.device) -> Scene:
    if case.regime is None:
        vlm, prompts = testbed(case.prompts, dtype, device)
    else:
        # The twin is the model as transformers builds it, without an adapter and our attention.
        vlm, twin = build_vlm(case.regime.shape, dtype, device)
        prompts = [one.prompt for one in random_lists(vlm, case.regime, case.prompts)]
        vlm.model = twin.eval()
        vlm.tokenizer = SimpleNamespace(
            pad_token_id=vlm.pad_token_id,
            added_tokens_decoder={},
            batch_decode=lambda ids, **_: [""] * len(ids),
        )
    end_nothing(vlm)
    return Scene(case, vlm, prompts)


def testbed(
    num_prompts: int, dtype: torch.dtype, device: torch.device
) -> tuple[Vlm, list[EncodedPrompt]]:
    """The shipped model, with prompts rendered for it."""
    name = {torch.float32: "float32", torch.bfloat16: "bfloat16"}[dtype]
    vlm = load_vlm(resolve_model("testbed"), dtype=name, device=device.type)
    rows = render_prompts(testbed_settings(0, "benchmark", num_prompts), "benchmark")
    return vlm, [encode_row(vlm, rows[index], "processor") for index in range(num_prompts)]


def end_nothing(vlm: Vlm) -> None:
    model: Any = vlm.model
    model.generation_config = GenerationConfig(pad_token_id=vlm.pad_token_id)
    vlm.eos_token_ids = (NO_TOKEN,)


def shared_prefix(scene: Scene) -> Tokens:
    """Ours: the function that `TransformersBackend` calls."""
    lists = sample_lists(
        scene.vlm,
        scene.prompts,
        num_samples=scene.case.num_samples,
        temperature=TEMPERATURE,
        max_new_tokens=scene.case.answer_tokens,
        seeds=range(len(scene.prompts)),
    )
    return [one.token_ids for drawn in lists for one in drawn]


def generate_one_by_one(scene: Scene) -> Tokens:
    """transformers' own way, one prompt per call."""
    return [drawn for prompt in scene.prompts for drawn in _generate(scene, [prompt])]


def generate_batch(scene: Scene) -> Tokens:
    """transformers' own way, with as many prompts per call as ours."""
    return _generate(scene, scene.prompts)


@torch.inference_mode()
def generate_copied_cache(scene: Scene) -> Tokens:
    """The best by hand with the library: read prompts once, copy their cache N times."""
    model: Any = scene.vlm.model
    num = scene.case.num_samples
    inputs = _inputs(scene.vlm, scene.prompts)
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    cache = model(**inputs, position_ids=positions, logits_to_keep=1).past_key_values
    cache.crop(-1)  # `generate` needs one token to start with
    cache.batch_repeat_interleave(num)
    rows = model.generate(
        input_ids=inputs["input_ids"].repeat_interleave(num, 0),
        attention_mask=inputs["attention_mask"].repeat_interleave(num, 0),
        past_key_values=cache,
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        top_p=1.0,
        max_new_tokens=scene.case.answer_tokens,
    )
    drawn: Tokens = rows[:, scene.prefix_tokens :].tolist()
    return drawn


WAYS: dict[str, Way] = {
    "generate": generate_one_by_one,
    "generate-batch": generate_batch,
    "generate-copied-cache": generate_copied_cache,
    "shared-prefix": shared_prefix,
}
OURS = "shared-prefix"
LIBRARY = ("generate", "generate-batch")  # ours is compared with the faster of the two


def ways_for(scene: Scene) -> dict[str, Way]:
    """The ways that work for this model: with three-axis positions a copied cache does not."""
    copies = scene.vlm.family.position_axes == 1
    return {name: way for name, way in WAYS.items() if copies or way is not generate_copied_cache}


def _generate(scene: Scene, prompts: Sequence[EncodedPrompt]) -> Tokens:
    model: Any = scene.vlm.model
    inputs = _inputs(scene.vlm, prompts)
    rows = model.generate(
        **inputs,
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        top_p=1.0,
        num_return_sequences=scene.case.num_samples,
        max_new_tokens=scene.case.answer_tokens,
    )
    drawn: Tokens = rows[:, inputs["input_ids"].shape[1] :].tolist()
    return drawn


def _inputs(vlm: Vlm, prompts: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
    """The inputs that a processor gives for a batch padded on the left."""
    width = max(prompt.num_tokens for prompt in prompts)
    ids = torch.full((len(prompts), width), vlm.pad_token_id)
    mask, types = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, -prompt.num_tokens :] = prompt.input_ids
        mask[row, -prompt.num_tokens :] = 1
        if prompt.token_types is not None:
            types[row, -prompt.num_tokens :] = prompt.token_types
    inputs = {"input_ids": ids, "attention_mask": mask}
    if "mm_token_type_ids" in inspect.signature(vlm.model.forward).parameters:
        inputs["mm_token_type_ids"] = types
    inputs |= cast_tensors(stack_image_tensors(prompts), vlm.dtype)
    return {name: value.to(vlm.device) for name, value in inputs.items()}


def peak_mib(scene: Scene, way: str) -> float | None:
    """Peak memory of one round without the model; None if it cannot be measured.

    torch measures it on CUDA. On the CPU a new process runs the round, so that no other way has
    used its memory before.
    """
    if scene.vlm.device.type == "cuda":
        return _cuda_peak_mib(scene, way)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        threads = torch.get_num_threads()
        return pool.submit(_resident_peak_mib, scene.case, scene.vlm.dtype, way, threads).result()


def _cuda_peak_mib(scene: Scene, way: str) -> float:
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    WAYS[way](scene)
    return (torch.cuda.max_memory_allocated() - before) / MIB


def _resident_peak_mib(case: Case, dtype: torch.dtype, way: str, threads: int) -> float | None:
    torch.set_num_threads(threads)
    scene = set_scene(case, dtype, torch.device("cpu"))
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
        before = _status_mib("VmRSS")
        WAYS[way](scene)
        return _status_mib("VmHWM") - before
    except OSError:
        return None


def _status_mib(name: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise OSError(f"no {name}")
    return int(found[1]) / 1024
