"""Time one PerPO step three ways, side by side in one run with random weights.

    python benchmarks/train_step.py --preset cpu --json train_step.json
    python benchmarks/train_step.py --preset h200 --json train_step.json      (a GPU, bf16, 7B)

shared        the shared prefix of train/shared_prefix.py: one row a list
concatenated  one full row a completion; everything else as above: the image encoded once a list,
              the head at answer positions only, cached reference, causal attention without a mask
released      as the authors' code does it: image encoded for each completion, fp32 logits of all
              positions, reference model run online (h200: gradient checkpointing too)

A step is forward, loss and backward on LoRA weights. The repeats of the ways are interleaved, so
that a busy machine slows all alike; the processor's seconds are given beside the wall's. The
token bound N(P + A) / (P + NA) is what sharing could give if the time followed the
number of tokens alone.
"""

import argparse
import contextlib
import functools
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from perpo_pipeline.models import FAMILIES, EncodedPrompt, Vlm, base_model, lora_config
from perpo_pipeline.train.losses import perpo_loss
from perpo_pipeline.train.shared_prefix import (
    CompletionList,
    completion_logps,
    pack_lists,
    token_logps,
)

IMAGE_ID = 3


@dataclass(frozen=True)
class Preset:
    """Shapes of the model and of the lists; the image always gives 24 x 24 = 576 tokens."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocab: int
    tower: tuple[int, int, int, int]  # hidden, intermediate, layers, heads
    rank: int
    dtype: str
    lists: int  # of a shared step; the other ways take one list a step and are as fast a list
    checkpointing: bool
    prefix_tokens: int = 600
    answer_tokens: int = 26
    num_samples: int = 20


PRESETS = {
    "cpu": Preset(768, 2, 12, 2048, 2048, (128, 512, 2, 2), 32, "float32", 1, False),
    "h200": Preset(4096, 32, 32, 11008, 32064, (1024, 4096, 24, 16), 128, "bfloat16", 8, True, 636),
}
Logps = Callable[[Vlm, Sequence[CompletionList]], Tensor]


def build(preset: Preset, device: torch.device) -> Vlm:
    """A LLaVA with random weights and a LoRA adapter whose B matrices are not zero."""
    width, inner, layers, heads = preset.tower
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
            num_attention_heads=heads, image_size=336, patch_size=14,
        ),
        text_config=LlamaConfig(
            vocab_size=preset.vocab, hidden_size=preset.hidden,
            intermediate_size=preset.intermediate, num_hidden_layers=preset.layers,
            num_attention_heads=preset.heads, max_position_embeddings=4096,
        ),
        image_token_index=IMAGE_ID, image_seq_length=576,
    )  # fmt: skip
    dtype = getattr(torch, preset.dtype)
    torch.set_default_dtype(dtype)
    with device:
        model = LlavaForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    vlm = Vlm(
        model=model.requires_grad_(False).eval(), processor=None,
        tokenizer=SimpleNamespace(pad_token_id=0), family=FAMILIES["llava"], device=device,
        dtype=dtype, eos_token_ids=(2,), image_token_ids=(IMAGE_ID,), identity="random",
    )  # fmt: skip
    lora: LoraConfig = lora_config(vlm, preset.rank, 2 * preset.rank)
    vlm.model = get_peft_model(model, lora, autocast_adapter_dtype=False)
    for name, parameter in vlm.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    return vlm


def random_lists(preset: Preset) -> list[CompletionList]:
    """Lists of random tokens: image, text, and N answers of exactly A tokens."""
    generator = torch.Generator().manual_seed(0)

    def tokens(*shape: int) -> Tensor:
        return torch.randint(10, preset.vocab, shape, generator=generator)

    lists = []
    for _ in range(preset.lists):
        text = tokens(preset.prefix_tokens - 576)
        ids = torch.cat([text[:5], torch.full((576,), IMAGE_ID), text[5:]])
        pixels = torch.randn(1, 3, 336, 336, generator=generator)
        prompt = EncodedPrompt(
            ids, {"pixel_values": pixels}, torch.arange(len(ids))[None], len(ids),
            (336, 336), (336, 336), (336, 336),
        )  # fmt: skip
        answers = tokens(preset.num_samples, preset.answer_tokens).tolist()
        lists.append(CompletionList(prompt, answers))
    return lists


def shared(vlm: Vlm, lists: Sequence[CompletionList]) -> Tensor:
    return completion_logps(vlm.model, pack_lists(vlm, lists))


def concatenated(vlm: Vlm, lists: Sequence[CompletionList], padding: int = 0) -> Tensor:
    """Full rows for one list; its last tokens are left out, as in a shared row."""
    (entry,) = lists
    inner = base_model(vlm.model)
    answers = torch.tensor(entry.completions, device=vlm.device)
    num, prefix = len(answers), entry.prompt.num_tokens
    prompt_ids = entry.prompt.input_ids.to(vlm.device).expand(num, -1)
    ids = torch.nn.functional.pad(torch.cat([prompt_ids, answers[:, :-1]], dim=1), (0, padding))
    pixels = entry.prompt.tensors["pixel_values"].to(vlm.device, vlm.dtype)
    features = torch.cat(inner.model.get_image_features(pixels).pooler_output)
    embeds = inner.get_input_embeddings()(ids)
    is_image = (ids == IMAGE_ID)[..., None].expand_as(embeds)
    embeds = embeds.masked_scatter(is_image, features.repeat(num, 1).to(embeds.dtype))
    hidden = inner.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    last = hidden[:, prefix - 1 : prefix - 1 + answers.shape[1]].flatten(0, 1)
    return token_logps(inner.lm_head, last, answers.flatten()).view(1, num, -1).sum(-1)


def released(vlm: Vlm, lists: Sequence[CompletionList]) -> Tensor:
    (entry,) = lists
    answers = torch.tensor(entry.completions, device=vlm.device)
    prefix = entry.prompt.num_tokens
    ids = torch.cat([entry.prompt.input_ids.to(vlm.device).expand(len(answers), -1), answers], 1)
    pixels = entry.prompt.tensors["pixel_values"].to(vlm.device, vlm.dtype)
    logits = vlm.model(
        input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False,
        pixel_values=pixels.repeat(len(answers), 1, 1, 1),
    ).logits.float()  # fmt: skip
    logps = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return logps[:, prefix - 1 :].sum(-1)[None]


def step(vlm: Vlm, lists: Sequence[CompletionList], logps: Logps, *, online: bool) -> None:
    """Forward, PerPO loss and backward; the reference is run here only if `online`."""
    vlm.model.zero_grad()
    policy = logps(vlm, lists)
    reference = policy.detach()
    if online:
        with torch.no_grad(), vlm.model.disable_adapter():
            reference = logps(vlm, lists)
    rewards = torch.linspace(0, 1, policy.shape[1], device=vlm.device).expand_as(policy)
    perpo_loss(policy, reference, rewards).mean().backward()


@contextlib.contextmanager
def checkpointing(vlm: Vlm, wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    vlm.model.train()
    vlm.model.gradient_checkpointing_enable({"use_reentrant": False})
    yield
    vlm.model.gradient_checkpointing_disable()
    vlm.model.eval()


def timed(vlm: Vlm, run: Callable[[], None]) -> tuple[float, float]:
    """Wall seconds, and this process's seconds of processor (what a shared machine leaves true)."""
    synchronise = torch.cuda.synchronize if vlm.device.type == "cuda" else lambda: None
    synchronise()
    start, busy = time.perf_counter(), time.process_time()
    run()
    synchronise()
    return time.perf_counter() - start, time.process_time() - busy


def measure(vlm: Vlm, preset: Preset, repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Wall and processor seconds a list of each way: a warm-up, then `repeats` interleaved."""
    lists = random_lists(preset)
    ways: dict[str, tuple[Logps, Sequence[CompletionList], bool, bool]] = {
        "shared": (shared, lists, False, False),
        "concatenated": (concatenated, lists[:1], False, False),
        "released": (released, lists[:1], True, preset.checkpointing),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for repeat in range(-1, repeats):
        for name, (logps, some, online, checkpointed) in ways.items():
            with checkpointing(vlm, checkpointed):
                run = functools.partial(step, vlm, some, logps, online=online)
                wall, busy = (taken / len(some) for taken in timed(vlm, run))
            if repeat >= 0:
                seconds[name].append((wall, busy))
            note = "" if repeat >= 0 else " (warm-up)"
            print(f"{name:14s} {wall:8.3f} s a list, {busy:8.3f} s of processor{note}", flush=True)
    return seconds


@torch.no_grad()
def differences(vlm: Vlm, preset: Preset) -> dict[str, float]:
    """Largest |dlogp| between the ways, and between two concatenated runs of other padding.

    The last is what rounding alone does: bf16 must be judged against it, not against zero.
    """
    entry = random_lists(preset)[:1]
    plain = concatenated(vlm, entry)
    others = {
        "shared": shared(vlm, entry),
        "released": released(vlm, entry),
        "concatenated_padded": concatenated(vlm, entry, padding=7),
    }
    return {name: (logps - plain).abs().max().item() for name, logps in others.items()}


def summarise(preset: Preset, seconds: dict[str, list[tuple[float, float]]]) -> dict[str, object]:
    """Median, least and most of each way, and the ratios of the medians against the token bound."""
    num, prefix, answer = preset.num_samples, preset.prefix_tokens, preset.answer_tokens
    bound = num * (prefix + answer) / (prefix + num * answer)
    result: dict[str, object] = {"token_bound": bound}
    for clock, index in (("wall", 0), ("processor", 1)):
        taken = {name: [pair[index] for pair in pairs] for name, pairs in seconds.items()}
        median = {name: statistics.median(values) for name, values in taken.items()}
        ratio = median["concatenated"] / median["shared"]
        result[clock] = {
            "seconds_a_list": {
                name: {"median": median[name], "min": min(values), "max": max(values)}
                for name, values in taken.items()
            },
            "concatenated_over_shared": ratio,
            "share_of_token_bound": ratio / bound,
            "released_over_shared": median["released"] / median["shared"],
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="processor threads (default: torch's)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    preset = PRESETS[arguments.preset]
    device = torch.device("cpu" if arguments.preset == "cpu" else "cuda")
    torch.manual_seed(0)
    vlm = build(preset, device)
    on_gpu = device.type == "cuda"
    result = {
        "preset": arguments.preset,
        "settings": asdict(preset),
        "repeats": arguments.repeats,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": torch.cuda.get_device_name() if on_gpu else platform.machine(),
        **summarise(preset, measure(vlm, preset, arguments.repeats)),
        "max_abs_dlogp_nats": differences(vlm, preset),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
