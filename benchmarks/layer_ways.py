"""The shared prefix of models with other layers than full attention, against separate rows.

    OMP_NUM_THREADS=1 python benchmarks/layer_ways.py
    python benchmarks/layer_ways.py --preset cuda --dtype bfloat16     (and once more with float32)

A step is forward and backward of LoRA weights on lists with a prefix of 600 tokens and 20 answers
of 26 tokens. The models are random, with the config and model classes of their families: Gemma 3
(most layers have a sliding window) and Qwen3.5 (three of four layers are gated delta nets).

Log-probabilities and gradients of both ways are compared first, with separate rows that are padded
on the left as the measure of rounding; then `--repeats` interleaved repeats are timed, and the
least one counts. Separate rows go through the model `--rows` at a time. `of the token bound` is the
speed-up as a share of what it would be if the time depended on the number of tokens alone.

`--preset cpu`: one list, float32, one thread, processor seconds. `--preset cuda`: four lists,
models with the widths of those of 2B weights, layers compiled as in training, and the wall clock.
`--preset dry`: a rehearsal with tiny models, in seconds.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from figures import save
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, Gemma3Config, Qwen3_5Config

from perpo_pipeline.doctor.exactness import LEFT_PADDING, judge, outcome
from perpo_pipeline.train.engine import ready_model
from perpo_pipeline.train.scope import lora_config
from perpo_pipeline.train.separate_rows import separate_lists, separate_logps
from perpo_pipeline.train.shared_prefix import CompletionList, pack_lists, packed_logps
from perpo_pipeline.vlm.families import family_of_type
from perpo_pipeline.vlm.loading import compute_whole_float32
from perpo_pipeline.vlm.models import EncodedPrompt, Vlm
from perpo_pipeline.vlm.windows import use_window_attention

PREFIX, ANSWER, NUM = 600, 26, 20
FIRST_WORD, VOCABULARY, RANK = 10, 2000, 16  # token ids below the first word are special
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Size:
    """Sizes of the text models; a head of Qwen3.5's attention and of its delta nets has `head`."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head: int
    linear_heads: int
    blocks: int  # of six layers in Gemma 3, of eight in Qwen3.5


@dataclass(frozen=True)
class Preset:
    """Where and on what a step is measured."""

    size: Size
    lists: int
    rows: int  # separate rows of one call
    is_compiled: bool | None  # None: as training decides
    clock: Callable[[], float]


PRESETS = {
    "cpu": Preset(Size(256, 1024, 4, 2, 64, 4, 1), 1, 2, False, time.process_time),
    "dry": Preset(Size(64, 128, 2, 1, 32, 2, 1), 1, 20, False, time.process_time),
    "cuda": Preset(Size(2048, 8192, 8, 4, 256, 16, 1), 4, 20, None, time.perf_counter),
}


def windowed(size: Size, window: int) -> Gemma3Config:
    """Gemma 3 whose windows see `window` tokens; one layer of six sees all."""
    text = {
        **text_settings(size),
        "num_hidden_layers": 6 * size.blocks,
        "sliding_window": window,
        "query_pre_attn_scalar": size.head,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * size.blocks,
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


def hybrid(size: Size) -> Qwen3_5Config:
    """Qwen3.5: three gated delta nets before each layer of attention."""
    quarter = size.head // 8  # pairs of numbers that are rotated: a quarter of a head
    axes = [quarter - 2 * (3 * quarter // 8), 3 * quarter // 8, 3 * quarter // 8]
    text = {
        **text_settings(size),
        "num_hidden_layers": 8 * size.blocks,
        "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 2 * size.blocks,
        "linear_num_key_heads": size.linear_heads,
        "linear_num_value_heads": size.linear_heads,
        "linear_key_head_dim": min(size.head, 128),
        "linear_value_head_dim": min(size.head, 128),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "partial_rotary_factor": 0.25,
            "mrope_section": axes,  # time, height, width
            "mrope_interleaved": True,
        },
    }
    tower = {
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": size.hidden,
        "num_position_embeddings": 16,
    }
    return Qwen3_5Config(text_config=text, vision_config=tower, image_token_id=3)


def text_settings(size: Size) -> dict[str, int]:
    """What the text models have in common."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.head,
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


MODELS: dict[str, Callable[[Size], Any]] = {
    "Gemma 3, windows of 128 tokens": lambda size: windowed(size, 128),
    "Gemma 3, windows of 512 tokens": lambda size: windowed(size, 512),
    "Qwen3.5": hybrid,
}


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, help="separate rows of one call")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(arguments)
    if options.preset == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "--preset cuda needs a CUDA device\n")
    preset = PRESETS[options.preset]
    device = torch.device("cuda" if options.preset == "cuda" else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    bound = NUM * (PREFIX + ANSWER) / (PREFIX + NUM * ANSWER)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {options.dtype}")
    print("| model | shared prefix, s | separate rows, s | speed-up | of the token bound | exact |")
    print("|---|---|---|---|---|---|")
    rows = []
    for name in options.model:
        config = MODELS[name](preset.size)
        row = measure(config, preset, device, DTYPES[options.dtype], options)
        row |= {"model": name, "of_bound": row["speed_up"] / bound}
        rows.append(row)
        print(
            f"| {name} | {row['shared_s']:.3f} | {row['separate_s']:.3f} | {row['speed_up']:.1f}x "
            f"| {row['of_bound']:.0%} of {bound:.1f}x | {row['state']}: {row['text']} |",
            flush=True,
        )
        save(options.json, {"torch": torch.__version__, "dtype": options.dtype, "rows": rows})
    return rows


def measure(
    config: Any, preset: Preset, device: torch.device, dtype: torch.dtype, options: Any
) -> dict[str, Any]:
    """Whether both ways agree, and the seconds per list that they take."""
    plain, packed = (build(config, device, dtype) for _ in range(2))
    ready_model(packed, "shared-prefix", settings(preset.is_compiled))
    for vlm in (plain, packed):
        vlm.model = with_lora(vlm)
    lists = random_lists(packed.family.position_axes, preset.lists)
    rows = options.rows or preset.rows
    parts = [
        CompletionList(one.prompt, one.completions[at : at + rows])
        for one in lists
        for at in range(0, NUM, rows)
    ]
    one = lists[:1]  # all would not fit as separate rows in one call
    found = judge(
        outcome(packed, lambda: pack_lists(packed, one)),
        outcome(plain, lambda: separate_lists(plain, one)),
        outcome(plain, lambda: separate_lists(plain, one, left_padding=LEFT_PADDING)),
        dtype,
        ANSWER,
    )
    batch = pack_lists(packed, lists).to(device)
    batches = [separate_lists(plain, [part]).to(device) for part in parts]
    times: dict[str, list[float]] = {"shared": [], "separate": []}
    for _ in range(options.repeats):
        times["shared"].append(seconds(preset.clock, packed_logps, packed, [batch]))
        times["separate"].append(seconds(preset.clock, separate_logps, plain, batches))
    shared, separate = (min(times[way]) / len(lists) for way in ("shared", "separate"))
    return {
        "shared_s": shared,
        "separate_s": separate,
        "speed_up": separate / shared,
        "state": found.state,
        "text": found.text,
        "figures": found.figures,
    }


def settings(is_compiled: bool | None) -> Any:
    """What `ready_model` takes from the settings of a training."""
    return SimpleNamespace(compile=is_compiled, deepspeed=None, row_lengths="any", levers=[])


def build(config: Any, device: torch.device, dtype: torch.dtype) -> Vlm:
    """A random model, the same at every call."""
    compute_whole_float32(dtype, device)
    torch.manual_seed(0)
    with device:
        model: Any = AutoModelForImageTextToText.from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        )
    model.requires_grad_(False)
    use_window_attention(model)
    return Vlm(
        model=model.eval(),
        processor=None,
        tokenizer=SimpleNamespace(pad_token_id=0),
        family=family_of_type(config.model_type),
        device=device,
        dtype=dtype,
        eos_token_ids=(2,),
        image_token_ids=(3,),
        identity="random",
    )


def with_lora(vlm: Vlm) -> Any:
    """The model with an adapter, the same at every call, whose B is not zero."""
    from peft import get_peft_model  # here: after this package, which keeps its imports quiet

    torch.manual_seed(0)
    model = get_peft_model(vlm.model, lora_config(vlm, RANK, 2 * RANK))  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.01)
    return model


def random_lists(axes: int, number: int) -> list[CompletionList]:
    """Prompts of text alone, whose positions have as many axes, with their answers."""
    generator = torch.Generator().manual_seed(0)

    def tokens(number: int) -> Tensor:
        return torch.randint(FIRST_WORD, VOCABULARY, (number,), generator=generator)

    positions = torch.arange(PREFIX).repeat(axes, 1)
    kinds = torch.zeros(PREFIX, dtype=torch.long)
    no_size = (0, 0)  # there is no image
    lists = []
    for _ in range(number):
        prompt = EncodedPrompt(
            tokens(PREFIX), {}, positions, PREFIX, no_size, no_size, None, token_types=kinds
        )
        lists.append(CompletionList(prompt, [tokens(ANSWER).tolist() for _ in range(NUM)]))
    return lists


def seconds(clock: Callable[[], float], logps: Any, vlm: Vlm, batches: Sequence[Any]) -> float:
    """Seconds of forward and backward of all batches."""
    start = clock()
    for batch in batches:
        logps(vlm.model, batch).sum().backward()
    if vlm.device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


if __name__ == "__main__":
    main()
