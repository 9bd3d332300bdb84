"""How well a testbed model answers: greedy and sampled boxes against the truth."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from perpo_pipeline.testbed.scenes import ReferringExample, referring_example
from tools.testbed.model import INSTRUCTION

MAX_NEW_TOKENS = 20
_BOX = re.compile(r"\[([01]\.\d\d), ([01]\.\d\d), ([01]\.\d\d), ([01]\.\d\d)\]")


@dataclass(frozen=True)
class Greedy:
    """Figures of greedy answers; all in [0, 1]. AP@50 counts IoU >= 0.5, unparsed is wrong."""

    ap50: float
    miou: float
    parse_rate: float


@dataclass(frozen=True)
class Sampled:
    """Figures of N sampled answers per prompt; a margin is the largest minus the smallest IoU."""

    parse_rate: float
    ap50_best_of_1: float
    ap50_best_of_4: float
    ap50_best_of_n: float
    margin_08: float
    margin_06: float


def parse_answer(text: str) -> tuple[float, float, float, float] | None:
    """The normalised box if the whole answer is a box with positive area, else None."""
    found = _BOX.fullmatch(text.strip())
    if found is None:
        return None
    x1, y1, x2, y2 = (float(value) for value in found.groups())
    return (x1, y1, x2, y2) if x1 < x2 <= 1 and y1 < y2 <= 1 else None


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two xyxy boxes with positive area."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    inter = width * height
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def prompt_text(processor: Any, expression: str) -> str:
    """The chat prompt of one question, with the image placeholder."""
    content = [{"type": "image"}, {"type": "text", "text": INSTRUCTION + expression}]
    messages = [{"role": "user", "content": content}]
    return str(processor.apply_chat_template(messages, add_generation_prompt=True))


@torch.no_grad()
def generate_answers(
    model: Any,
    processor: Any,
    examples: Sequence[ReferringExample],
    *,
    num_samples: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[list[str]]:
    """Answers (prompts, samples); temperature 0 is greedy, else softmax(logits / T) unfiltered."""
    processor.tokenizer.padding_side = "left"
    inputs = processor(
        text=[prompt_text(processor, example.expression) for example in examples],
        images=[example.image for example in examples],
        return_tensors="pt",
        padding=True,
    ).to(model.device)
    generator = torch.Generator(device=model.device).manual_seed(seed)
    eos = int(model.config.text_config.eos_token_id)
    mask = inputs["attention_mask"]
    # Left padding must not count as positions: `generate` does this, a plain forward does not.
    first_positions = (mask.cumsum(-1) - 1).clamp_min(0)
    out = model(**inputs, position_ids=first_positions, use_cache=True, logits_to_keep=1)
    cache, logits = out.past_key_values, out.logits[:, -1]
    positions = mask.sum(-1)
    if num_samples > 1:
        cache.batch_repeat_interleave(num_samples)
        logits, mask, positions = (
            x.repeat_interleave(num_samples, 0) for x in (logits, mask, positions)
        )
    tokens: list[Tensor] = []
    done = torch.zeros(len(logits), dtype=torch.bool, device=model.device)
    for _ in range(MAX_NEW_TOKENS):
        choice = _choose(logits, temperature, generator).masked_fill(done, eos)
        tokens.append(choice)
        done |= choice == eos
        if bool(done.all()):
            break
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        out = model(
            input_ids=choice[:, None],
            attention_mask=mask,
            position_ids=positions[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        logits, positions = out.logits[:, -1], positions + 1
    texts = processor.tokenizer.batch_decode(torch.stack(tokens, 1), skip_special_tokens=True)
    return [list(texts[i : i + num_samples]) for i in range(0, len(texts), num_samples)]


def _choose(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    chances = (logits.float() / temperature).softmax(-1)
    return torch.multinomial(chances, 1, generator=generator)[:, 0]


def answer_ious(
    model: Any,
    processor: Any,
    examples: Sequence[ReferringExample],
    *,
    num_samples: int = 1,
    temperature: float = 0.0,
    batch: int = 64,
) -> tuple[Tensor, float]:
    """IoU of every answer, (prompts, samples), unparsed as 0; and the share that parsed."""
    rows: list[list[float]] = []
    parsed = 0
    for start in range(0, len(examples), batch):
        part = examples[start : start + batch]
        answers = generate_answers(
            model, processor, part, num_samples=num_samples, temperature=temperature, seed=start
        )
        for example, texts in zip(part, answers, strict=True):
            side = example.image.width
            truth = [value / side for value in example.box_xyxy_px]
            boxes = [parse_answer(text) for text in texts]
            parsed += sum(box is not None for box in boxes)
            rows.append([iou(box, truth) if box else 0.0 for box in boxes])
    ious = torch.tensor(rows)
    return ious, parsed / ious.numel()


def fresh_examples(seed: int, count: int, preset: str) -> list[ReferringExample]:
    """The first `count` examples of a seed."""
    return [referring_example(seed, index, preset) for index in range(count)]


def swap_images(examples: Sequence[ReferringExample]) -> list[ReferringExample]:
    """The same questions and truths, each with the next example's picture."""
    return [
        ReferringExample(
            other.image, example.expression, example.box_xyxy_px, example.distractor_box_xyxy_px
        )
        for example, other in zip(examples, [*examples[1:], examples[0]], strict=True)
    ]


def measure_greedy(
    model: Any,
    processor: Any,
    examples: Sequence[ReferringExample],
) -> Greedy:
    """Greedy AP@50, mean IoU and parse rate."""
    ious, parse_rate = answer_ious(model, processor, examples)
    return Greedy(float((ious >= 0.5).float().mean()), float(ious.mean()), parse_rate)


def measure_sampled(
    model: Any,
    processor: Any,
    examples: Sequence[ReferringExample],
    num_samples: int = 20,
    temperature: float = 0.5,
) -> Sampled:
    """Best-of-n AP@50 and the share of lists with a wide margin."""
    ious, parse_rate = answer_ious(
        model, processor, examples, num_samples=num_samples, temperature=temperature, batch=32
    )
    best = [float((ious[:, :n].amax(1) >= 0.5).float().mean()) for n in (1, 4, num_samples)]
    margin = ious.amax(1) - ious.amin(1)
    wide = [float((margin >= limit).float().mean()) for limit in (0.8, 0.6)]
    return Sampled(parse_rate, *best, *wide)


def measure_all(
    model: Any,
    processor: Any,
    examples: Sequence[ReferringExample],
) -> dict[str, float]:
    """All figures of the model card, rounded."""
    model.eval()
    figures: dict[str, float] = dict(asdict(measure_greedy(model, processor, examples)))
    blind = measure_greedy(model, processor, swap_images(examples))
    figures["ap50_other_image"] = blind.ap50
    for name, value in asdict(measure_sampled(model, processor, examples)).items():
        figures[f"sampled_{name}"] = value
    return {name: round(value, 4) for name, value in figures.items()}
