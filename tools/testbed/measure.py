"""How well a testbed model answers: greedy and sampled boxes and texts against the truth."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from perpo_pipeline.rewards.text import edit_similarities
from perpo_pipeline.testbed.pages import PAGE_PRESETS, PAGE_PROMPT, PageExample, page_example
from perpo_pipeline.testbed.scenes import ReferringExample, referring_example
from tools.testbed.model import INSTRUCTION

MAX_NEW_TOKENS = {"box": 20, "text": 120}
TEMPERATURE = 0.5  # of sampled answers
_BOX = re.compile(r"\[([01]\.\d\d), ([01]\.\d\d), ([01]\.\d\d), ([01]\.\d\d)\]")


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


def prompt_text(processor: Any, instruction: str) -> str:
    """The chat prompt of one question, with the image placeholder."""
    content = [{"type": "image"}, {"type": "text", "text": instruction}]
    messages = [{"role": "user", "content": content}]
    return str(processor.apply_chat_template(messages, add_generation_prompt=True))


def instruction_of(example: ReferringExample | PageExample) -> str:
    """What the prompt asks about the example's picture."""
    return PAGE_PROMPT if isinstance(example, PageExample) else INSTRUCTION + example.expression


@torch.no_grad()
def generate_answers(
    model: Any,
    processor: Any,
    examples: Sequence[ReferringExample] | Sequence[PageExample],
    *,
    num_samples: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[list[str]]:
    """Answers (prompts, samples); temperature 0 is greedy, else softmax(logits / T) unfiltered."""
    processor.tokenizer.padding_side = "left"
    inputs = processor(
        text=[prompt_text(processor, instruction_of(example)) for example in examples],
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
    for _ in range(MAX_NEW_TOKENS["text" if isinstance(examples[0], PageExample) else "box"]):
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
    answers = _answers_in_batches(model, processor, examples, num_samples, temperature, batch)
    for example, texts in zip(examples, answers, strict=True):
        side = example.image.width
        truth = [value / side for value in example.box_xyxy_px]
        boxes = [parse_answer(text) for text in texts]
        parsed += sum(box is not None for box in boxes)
        rows.append([iou(box, truth) if box else 0.0 for box in boxes])
    ious = torch.tensor(rows)
    return ious, parsed / ious.numel()


def page_distances(
    model: Any,
    processor: Any,
    pages: Sequence[PageExample],
    *,
    num_samples: int = 1,
    temperature: float = 0.0,
    batch: int = 64,
) -> Tensor:
    """Normalised edit distance of every answer, (prompts, samples): 1 - the project's reward."""
    rows: list[list[float]] = []
    answers = _answers_in_batches(model, processor, pages, num_samples, temperature, batch)
    for page, texts in zip(pages, answers, strict=True):
        similarities = edit_similarities(texts, [page.text] * len(texts))
        rows.append((1 - similarities).tolist())
    return torch.tensor(rows)


def _answers_in_batches(
    model: Any,
    processor: Any,
    examples: Sequence[ReferringExample] | Sequence[PageExample],
    num_samples: int,
    temperature: float,
    batch: int,
) -> Iterator[list[str]]:
    """Yield the answers to each example; the seed of a batch is its place."""
    for start in range(0, len(examples), batch):
        yield from generate_answers(
            model,
            processor,
            examples[start : start + batch],
            num_samples=num_samples,
            temperature=temperature,
            seed=start,
        )


def fresh_examples(seed: int, count: int, preset: str) -> list[ReferringExample]:
    """The first `count` scenes of a seed."""
    return [referring_example(seed, index, preset) for index in range(count)]


def fresh_pages(seed: int, count: int, preset: str) -> list[PageExample]:
    """The first `count` pages of a seed; none for a preset without pages."""
    if preset not in PAGE_PRESETS:
        return []
    return [page_example(seed, index, preset) for index in range(count)]


def swap_images(examples: Sequence[ReferringExample]) -> list[ReferringExample]:
    """The same questions and truths, each with the next example's picture."""
    return [
        ReferringExample(
            other.image, example.expression, example.box_xyxy_px, example.distractor_box_xyxy_px
        )
        for example, other in zip(examples, [*examples[1:], examples[0]], strict=True)
    ]


def swap_pages(pages: Sequence[PageExample]) -> list[PageExample]:
    """The same truths, each with the next page's picture."""
    return [
        replace(page, image=other.image)
        for page, other in zip(pages, [*pages[1:], pages[0]], strict=True)
    ]


def measure_boxes(
    model: Any, processor: Any, examples: Sequence[ReferringExample]
) -> dict[str, float]:
    """Greedy AP@50 (IoU >= 0.5; unparsed is wrong), mean IoU and parse rate, all in [0, 1]."""
    ious, parse_rate = answer_ious(model, processor, examples)
    ap50 = float((ious >= 0.5).float().mean())
    return {"ap50": ap50, "miou": float(ious.mean()), "parse_rate": parse_rate}


def measure_texts(model: Any, processor: Any, pages: Sequence[PageExample]) -> dict[str, float]:
    """Mean edit distance of greedy answers, of pages with one and with two columns too."""
    distances = page_distances(model, processor, pages)[:, 0]
    columns = torch.tensor([page.columns for page in pages])
    found = {"edit_distance": float(distances.mean())}
    for count, name in ((1, "one_column"), (2, "two_columns")):
        if bool((columns == count).any()):
            found[f"edit_distance_{name}"] = float(distances[columns == count].mean())
    return found


def sampled_boxes(
    model: Any, processor: Any, examples: Sequence[ReferringExample], num_samples: int = 20
) -> dict[str, float]:
    """Best-of-n AP@50 at T = 0.5, and the share of lists with a margin (max - min) of IoU."""
    ious, parse_rate = answer_ious(
        model, processor, examples, num_samples=num_samples, temperature=TEMPERATURE, batch=32
    )
    found = {"sampled_parse_rate": parse_rate}
    for n in (1, 4, num_samples):
        best = float((ious[:, :n].amax(1) >= 0.5).float().mean())
        found[f"sampled_ap50_best_of_{n}"] = best
    margin = ious.amax(1) - ious.amin(1)
    for limit, name in ((0.8, "08"), (0.6, "06")):
        found[f"sampled_margin_{name}"] = float((margin >= limit).float().mean())
    return found


def sampled_texts(
    model: Any, processor: Any, pages: Sequence[PageExample], num_samples: int = 20
) -> dict[str, float]:
    """Best-of-n edit distance at T = 0.5, and the share of lists with a margin of 0.04."""
    distances = page_distances(
        model, processor, pages, num_samples=num_samples, temperature=TEMPERATURE, batch=16
    )
    found = {
        f"sampled_edit_distance_best_of_{n}": float(distances[:, :n].amin(1).mean())
        for n in (1, 4, num_samples)
    }
    margin = distances.amax(1) - distances.amin(1)
    found["sampled_edit_margin_004"] = float((margin >= 0.04).float().mean())
    return found


def measure_greedy(
    model: Any, processor: Any, seed: int, count: int, preset: str
) -> dict[str, float]:
    """Greedy figures on the first `count` scenes of a seed and, where there are any, pages."""
    figures = measure_boxes(model, processor, fresh_examples(seed, count, preset))
    pages = fresh_pages(seed, count, preset)
    return figures | (measure_texts(model, processor, pages) if pages else {})


def measure_all(model: Any, processor: Any, seed: int, count: int, preset: str) -> dict[str, float]:
    """All figures of the model card, rounded."""
    model.eval()
    figures = measure_greedy(model, processor, seed, count, preset)
    examples, pages = fresh_examples(seed, count, preset), fresh_pages(seed, count, preset)
    blind = measure_boxes(model, processor, swap_images(examples))
    figures["ap50_other_image"] = blind["ap50"]
    figures |= sampled_boxes(model, processor, examples)
    if pages:
        blind = measure_texts(model, processor, swap_pages(pages))
        figures["edit_distance_other_image"] = blind["edit_distance"]
        figures |= sampled_texts(model, processor, pages)
    return {name: round(value, 4) for name, value in figures.items()}
