"""The shared prefix of models with other layers than full attention, against separate rows.

    OMP_NUM_THREADS=1 python benchmarks/layer_ways.py

One list: a prefix of 600 tokens, 20 answers of 26 tokens, forward and backward on LoRA weights in
float32, on one thread. The models are random, with the config and model classes of their families:
Gemma 3 (five of six layers have a sliding window) and Qwen3.5 (three of four layers are gated delta
nets). Separate rows go through the model `--rows` at a time. Printed are the least processor
seconds of `--repeats` interleaved repeats, and how much of the token bound the shared prefix
reaches: the speed-up if the time depended on the number of tokens alone.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, Gemma3Config, Qwen3_5Config

from perpo_pipeline.train.engine import ready_model
from perpo_pipeline.train.scope import lora_config
from perpo_pipeline.train.separate_rows import separate_lists, separate_logps
from perpo_pipeline.train.shared_prefix import CompletionList, pack_lists, packed_logps
from perpo_pipeline.vlm.families import family_of_type
from perpo_pipeline.vlm.models import EncodedPrompt, Vlm
from perpo_pipeline.vlm.windows import use_window_attention

PREFIX, ANSWER, NUM = 600, 26, 20
FIRST_WORD, VOCABULARY, RANK = 10, 2000, 16  # token ids below the first word are special
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def windowed(window: int) -> Gemma3Config:
    """Gemma 3 whose windows see `window` tokens."""
    text = {
        **TEXT,
        "num_hidden_layers": 6,
        "sliding_window": window,
        "query_pre_attn_scalar": 64,
        "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    }
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "vision_use_head": False,
    }
    return Gemma3Config(
        text_config=text, vision_config=tower, mm_tokens_per_image=16, image_token_id=3
    )


def hybrid() -> Qwen3_5Config:
    """Qwen3.5 with six gated delta nets and two layers of attention."""
    axes = [2, 3, 3]  # time, height, width, of the quarter of a head that is rotated
    text = {
        **TEXT,
        "num_hidden_layers": 8,
        "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 2,
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "partial_rotary_factor": 0.25,
            "mrope_section": axes,
            "mrope_interleaved": True,
        },
    }
    tower = {
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": TEXT["hidden_size"],
        "num_position_embeddings": 16,
    }
    return Qwen3_5Config(text_config=text, vision_config=tower, image_token_id=3)


MODELS: dict[str, Callable[[], Any]] = {
    "Gemma 3, windows of 128 tokens": lambda: windowed(128),
    "Gemma 3, windows of 512 tokens": lambda: windowed(512),
    "Qwen3.5": hybrid,
}


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2, help="separate rows of one call")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    bound = NUM * (PREFIX + ANSWER) / (PREFIX + NUM * ANSWER)
    print("| model | shared prefix, s | separate rows, s | speed-up | of the token bound |")
    print("|---|---|---|---|---|")
    rows = []
    for name, config in MODELS.items():
        shared, separate = measure(config(), options.repeats, options.rows)
        speed_up = separate / shared
        rows.append({"model": name, "speed_up": speed_up, "of_bound": speed_up / bound})
        print(
            f"| {name} | {shared:.2f} | {separate:.2f} | {speed_up:.1f}x | "
            f"{speed_up / bound:.0%} of {bound:.1f}x |",
            flush=True,
        )
    return rows


def measure(config: Any, repeats: int, rows: int) -> tuple[float, float]:
    """Processor seconds of a list with the shared prefix, and in separate rows."""
    plain, packed = build(config), build(config)
    ready_model(packed, "shared-prefix", settings())
    prompt, answers = random_list(packed.family.position_axes)
    whole = [CompletionList(prompt, answers)]
    parts = [CompletionList(prompt, answers[at : at + rows]) for at in range(0, NUM, rows)]
    for vlm in (plain, packed):
        vlm.model = with_lora(vlm)
    batch = pack_lists(packed, whole)
    batches = [separate_lists(plain, [part]) for part in parts]
    times: dict[str, list[float]] = {"shared": [], "separate": []}
    for _ in range(repeats):
        times["shared"].append(seconds(packed_logps, packed, [batch]))
        times["separate"].append(seconds(separate_logps, plain, batches))
    return min(times["shared"]), min(times["separate"])


def settings() -> Any:
    """What `ready_model` takes from the settings of a training."""
    return SimpleNamespace(compile=False, deepspeed=None, row_lengths="any", levers=[])


def build(config: Any) -> Vlm:
    """A random model, the same at every call."""
    torch.manual_seed(0)
    model: Any = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    model.requires_grad_(False)
    use_window_attention(model)
    return Vlm(
        model=model.eval(),
        processor=None,
        tokenizer=SimpleNamespace(pad_token_id=0),
        family=family_of_type(config.model_type),
        device=torch.device("cpu"),
        dtype=torch.float32,
        eos_token_ids=(2,),
        image_token_ids=(3,),
        identity="random",
    )


def with_lora(vlm: Vlm) -> Any:
    from peft import get_peft_model  # here: after this package, which keeps its imports quiet

    return get_peft_model(vlm.model, lora_config(vlm, RANK, 2 * RANK))  # type: ignore[arg-type]


def random_list(axes: int) -> tuple[EncodedPrompt, list[list[int]]]:
    """A prompt of text alone, whose positions have as many axes, and its answers."""
    generator = torch.Generator().manual_seed(0)

    def tokens(number: int) -> Tensor:
        return torch.randint(FIRST_WORD, VOCABULARY, (number,), generator=generator)

    positions = torch.arange(PREFIX).repeat(axes, 1)
    kinds = torch.zeros(PREFIX, dtype=torch.long)
    no_size = (0, 0)  # there is no image
    prompt = EncodedPrompt(
        tokens(PREFIX), {}, positions, PREFIX, no_size, no_size, None, token_types=kinds
    )
    return prompt, [tokens(ANSWER).tolist() for _ in range(NUM)]


def seconds(logps: Any, vlm: Vlm, batches: Sequence[Any]) -> float:
    """Processor seconds of forward and backward."""
    start = time.process_time()
    for batch in batches:
        logps(vlm.model, batch).sum().backward()
    return time.process_time() - start


if __name__ == "__main__":
    main()
