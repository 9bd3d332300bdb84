"""The table of memory per GPU in the docs: what `perpo train --dry-run` computes for known models.

    python benchmarks/memory_table.py

Nothing is measured here. Shapes are those of the models' published configs; LoRA of rank 128 on
all linear layers of the language model.
"""

from perpo_pipeline.train.memory import GIB, Shape, estimate_memory

RANK = 128
GPUS = 8
# Packed tokens of a list: prefix + 20 answers (measured shapes of the two recipes).
GROUNDING, OCR = 636 + 20 * 26, 2920 + 20 * 1000


def shape(
    parameters: float, layers: int, width: int, inner: int, kv_width: int, vocabulary: int
) -> Shape:
    """A bf16 model with the recipes' adapter."""
    attention = 2 * (width + width) + 2 * (width + kv_width)  # q and o, k and v
    feed_forward = 3 * (width + inner)
    trained = layers * RANK * (attention + feed_forward)
    return Shape(int(parameters), trained, layers, width, inner, kv_width, vocabulary)


MODELS = {
    "7B (LLaVA-1.5)": shape(7.063e9, 32, 4096, 11_008, 4096, 32_064),
    "13B (LLaVA-1.5)": shape(13.351e9, 40, 5120, 13_824, 5120, 32_064),
    "72B (Qwen2.5-VL)": shape(73.4e9, 80, 8192, 29_568, 1024, 152_064),
}


def main() -> None:
    """Print the table in Markdown."""
    print("| model | lists | 1 GPU | 8 GPUs | 8, zero2 | 8, zero3 |")
    print("|---|---|---|---|---|---|")
    for name, model in MODELS.items():
        for what, tokens, lists, checkpointing in (
            ("grounding", GROUNDING, 8, False),
            ("OCR", OCR, 1, True),
        ):
            alone = estimate_memory(model, lists * tokens, checkpointing=checkpointing)
            cells = [alone.total]
            for stage in (0, 2, 3):
                found = estimate_memory(
                    model, tokens, processes=GPUS, zero_stage=stage, checkpointing=checkpointing
                )
                cells.append(found.total)
            print(f"| {name} | {what} | " + " | ".join(f"{c / GIB:.0f}" for c in cells) + " |")


if __name__ == "__main__":
    main()
