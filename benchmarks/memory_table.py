"""The tables of memory per GPU in docs/many-gpus.md: what `perpo plan` computes for known models.

    python benchmarks/memory_table.py

Nothing is measured here. Shapes are those of the models' published configs
(planning/published.toml), settings those of the recipes in configs/, lists those of
benchmarks/RESULTS.md: 20 answers of one box, or of 1,000 tokens.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from perpo_pipeline.config.file import load_config
from perpo_pipeline.machine import GIB
from perpo_pipeline.planning.hardware import published
from perpo_pipeline.planning.training import FITS, Training, plan_epoch, remedies
from perpo_pipeline.train.memory import Shape, estimate_memory

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RANK = 128
GPUS = 8
CARDS = (24, 40, 48, 80, 141)
LISTS = 64
# Tokens of a list: prefix + 20 answers. LLaVA's box has 26 tokens, Qwen's JSON about 48 (stated).
GROUNDING, OCR = 636 + 20 * 26, 2920 + 20 * 1000
NEXT, QWEN25, QWEN3 = 2890 + 20 * 26, 451 + 20 * 48, 360 + 20 * 48
RECIPES = (
    ("LLaVA-1.5-7B, grounding", "llava-hf/llava-1.5-7b-hf", "llava15-grounding", GROUNDING),
    ("LLaVA-1.5-13B, grounding", "llava-hf/llava-1.5-13b-hf", "llava15-grounding", GROUNDING),
    ("LLaVA-NeXT-7B, grounding", "llava-hf/llava-v1.6-vicuna-7b-hf", "llava-next-grounding", NEXT),
    ("LLaVA-NeXT-7B, OCR", "llava-hf/llava-v1.6-vicuna-7b-hf", "llava-next-ocr", OCR),
    ("Qwen2.5-VL-7B, grounding", "Qwen/Qwen2.5-VL-7B-Instruct", "qwen25-vl-grounding", QWEN25),
    ("Qwen3-VL-8B, grounding", "Qwen/Qwen3-VL-8B-Instruct", "qwen3-vl-grounding", QWEN3),
    ("Qwen3-VL-4B, grounding, 24 GB", "Qwen/Qwen3-VL-4B-Instruct", "qwen3-vl-4b-24gb", QWEN3),
)
SHORT = {
    "train.max_tokens_per_forward": "tokens {}",
    "train.gradient_checkpointing": "checkpointing",
    "train.activation_offload": "offload",
    "model.quantization": "{}",
}
LARGEST = Shape(73_400_000_000, 0, 80, 8192, 29_568, 1024, 152_064)  # Qwen2.5-VL-72B


def published_shape(model: str) -> Shape:
    """A bf16 model with the recipes' adapter."""
    record: dict[str, Any] = published()["models"][model]
    names = [name for name in Shape.__dataclass_fields__ if name in record]
    return with_adapter(Shape(**{name: record[name] for name in names}, trained=0))


def with_adapter(shape: Shape) -> Shape:
    """The shape with LoRA of rank 128 on all linear layers of the language model."""
    return replace(shape, trained=shape.lora_numbers(RANK), rank=RANK)


def training_of(model: str, recipe: str, tokens: int) -> Training:
    """The PerPO training of a recipe on lists of `tokens` tokens."""
    config = load_config(CONFIGS / f"{recipe}.yaml")
    settings, answers = config.train.variants()["perpo"], config.sample.num_samples
    rows = [(tokens,)] * LISTS
    epoch = plan_epoch(rows, settings, "shared-prefix", 1, on_gpu=True)
    shape = published_shape(model)
    return Training(
        "perpo", settings, LISTS, epoch, "shared-prefix", shape, 1, on_gpu=True, answers=answers
    )


def one_gpu() -> Iterator[str]:
    """Rows: each recipe on one card of each size."""
    heads = [f"{card} GB" for card in CARDS]
    yield f"| recipe | tokens of a list | as it is | {' | '.join(heads)} |"
    yield "|---" * (3 + len(CARDS)) + "|"
    for name, model, recipe, tokens in RECIPES:
        training = training_of(model, recipe, tokens)
        needed = training.memory().total
        cells = [_cell(training, needed, card * GIB) for card in CARDS]
        yield f"| {name} | {tokens:,} | {needed / GIB:.0f} | {' | '.join(cells)} |"


def _cell(training: Training, needed: float, memory: float) -> str:
    if needed <= FITS * memory:
        return "fits"
    ((settings, estimate),) = remedies(training, memory)
    words = [word.split("=") for word in settings.split(" ")]
    shown = ", ".join(SHORT[key].format(value) for key, value in words)
    least = "" if estimate.total <= FITS * memory else "too small: "
    return f"{least}{shown}: {estimate.total / GIB:.0f}"


def many_gpus() -> Iterator[str]:
    """Rows: one list per forward on 8 GPUs, with and without ZeRO."""
    yield "| model | lists | 1 GPU | 8 GPUs | 8, zero2 | 8, zero3 |"
    yield "|---" * 6 + "|"
    models = {
        "7B (LLaVA-1.5)": published_shape("llava-hf/llava-1.5-7b-hf"),
        "13B (LLaVA-1.5)": published_shape("llava-hf/llava-1.5-13b-hf"),
        "72B (Qwen2.5-VL)": with_adapter(LARGEST),
    }
    for name, model in models.items():
        for what, tokens, lists, checkpointing in (
            ("grounding", GROUNDING, 8, False),
            ("OCR", OCR, 1, True),
        ):
            alone = estimate_memory(model, lists * tokens, checkpointing=checkpointing)
            cells = [alone.total]
            for stage in (0, 2, 3):
                found = estimate_memory(
                    model,
                    tokens,
                    processes=GPUS,
                    zero_stage=stage,
                    checkpointing=checkpointing,
                    compiled=stage < 3,
                )
                cells.append(found.total)
            yield f"| {name} | {what} | " + " | ".join(f"{c / GIB:.0f}" for c in cells) + " |"


def main() -> None:
    """Print both tables in Markdown."""
    print(*one_gpu(), "", *many_gpus(), sep="\n")


if __name__ == "__main__":
    main()
