"""How many tokens prompts are for the run's model, and a warning where one is too large.

Image tokens follow from an image's size, so no pixels are read. Needs the model's files on this
machine, without its weights; nothing is downloaded.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from perpo_pipeline.config.inference import InferenceConfig
from perpo_pipeline.errors import PerpoError, first_line
from perpo_pipeline.inference.long_truths import find_long_truths
from perpo_pipeline.run import Run
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.places import name_prompt
from perpo_pipeline.store.prompt_images import most_images, num_images, sizes_of
from perpo_pipeline.store.schemas import PROMPTS
from perpo_pipeline.vlm.families import Family
from perpo_pipeline.vlm.image_limits import pixel_limits
from perpo_pipeline.vlm.inputs import (
    context_length,
    count_row_parts,
    find_model_here,
    seen_sizes,
)

if TYPE_CHECKING:
    from perpo_pipeline.vlm.models import Vlm

COUNTED_ROWS, LARGEST = 2_000, 100  # prompts that are counted; so many have the largest images
MANY_TOKENS = 4_096  # of one image: worth a warning where nothing limits it
USUAL_TOKENS = 1_280  # of a large image, as Qwen recommends (README of Qwen2.5-VL: 256 to 1,280)
COLUMNS = (
    *PROMPTS.pick("prompt_id", "place", "task", "gt_text", "prompt", "history", role="sizes"),
)
Row: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Tokens:
    """Tokens of some prompts, row by row: of the images and of the text."""

    rows: Sequence[Row]
    image: Sequence[int]
    text: Sequence[int]

    @property
    def whole(self) -> list[int]:
        """Tokens of image and text together."""
        return [i + t for i, t in zip(self.image, self.text, strict=True)]


def token_lines(run: Run, prompts: Version) -> Iterator[str]:
    """What `perpo prepare` says about the tokens of a split: percentiles, then warnings.

    Nothing about the model's files raises: without them there is nothing to count.
    """
    config, split = run.config.model, prompts.variant
    try:
        found = find_model_here(config)
        if found is None:
            yield f"tokens are not counted: the files of {config.id} are not on this machine"
            return
        from perpo_pipeline.vlm.loading import load_without_weights

        # The hash of the weights is of no use here, and takes long.
        vlm = load_without_weights(replace(found, weights_sha256="not computed"))
        rows = _some_rows(prompts)
        if not rows or not _counts_from_sizes(vlm, rows[0]):
            return
        tokens = count(vlm, rows, config.preprocess)
    except PerpoError as error:
        yield f"tokens are not counted: {first_line(error)}"
        return
    yield _percentiles(tokens, prompts.manifest["rows"])
    yield from _warnings(run, vlm, split, tokens)
    yield from _cut_truths(run, vlm, split, rows)


def count(vlm: "Vlm", rows: Sequence[Row], preprocess: str) -> Tokens:
    """Count the tokens of rows of the prompts."""
    parts = [count_row_parts(vlm, row, preprocess) for row in rows]
    return Tokens(rows, [image for image, _ in parts], [text for _, text in parts])


def _counts_from_sizes(vlm: "Vlm", row: Row) -> bool:
    family: Family = vlm.family
    return family.image_tokens(vlm.processor, (row["width"], row["height"])) is not None


def _some_rows(prompts: Version) -> list[Row]:
    """Rows spread over all of them, and those with the largest images; all, if they are few."""
    table = prompts.table(columns=list(COLUMNS))
    number = table.num_rows
    if number <= COUNTED_ROWS:
        return list(table.to_pylist())
    pixels = np.asarray(table["width"], np.int64) * np.asarray(table["height"], np.int64)
    if most_images(table) > 1:
        sizes = [sizes_of(row) for row in table.select(PROMPTS.role("sizes")).to_pylist()]
        pixels = np.array([sum(width * height for width, height in one) for one in sizes])
    largest = np.argsort(pixels, kind="stable")[-LARGEST:]
    spread = np.linspace(0, number - 1, COUNTED_ROWS - LARGEST).astype(int)
    chosen = np.union1d(largest, spread)
    return list(table.take(chosen).to_pylist())


def _percentiles(tokens: Tokens, number: int) -> str:
    def figures(counts: Sequence[int]) -> str:
        quantiles = np.quantile(counts, (0.5, 0.9, 0.99, 1), method="higher")
        return ", ".join(f"{value:,}" for value in quantiles.astype(int))

    few = len(tokens.rows) < number
    counted = f"{len(tokens.rows):,} of {number:,} prompts (the largest images are among them)"
    return (
        f"tokens of {counted if few else f'{number:,} prompts'}; median, 90 %, 99 %, most: "
        f"image {figures(tokens.image)}; text {figures(tokens.text)}"
    )


def _warnings(run: Run, vlm: "Vlm", split: str, tokens: Tokens) -> Iterator[str]:
    """One line for each limit that prompts exceed, and one for a large image without a limit."""
    warned = False
    for name, limit in _limits(run, vlm, split):
        over = [at for at, whole in enumerate(tokens.whole) if whole > limit]
        if not over:
            continue
        warned = True
        room = limit - max(tokens.text[at] for at in over)
        have = "have" if len(over) > 1 else "has"
        yield (
            f"warning: {len(over):,} of {len(tokens.rows):,} counted prompts {have} more tokens "
            f"than {name}; {_largest(tokens)}{_advice(run, vlm, tokens, room)}"
        )
    is_open = vlm.family.image_limits is pixel_limits and vlm.limits.max_pixels is None
    if is_open and not warned and max(tokens.image) > MANY_TOKENS:
        advice = _advice(run, vlm, tokens, USUAL_TOKENS)
        yield f"warning: model.max_pixels is not set; {_largest(tokens)}{advice}"


def _cut_truths(run: Run, vlm: "Vlm", split: str, rows: Sequence[Row]) -> Iterator[str]:
    """One line for each use of the split whose answers cannot hold all true texts."""
    texts = [row for row in rows if row["gt_text"] is not None]
    tasks = dict.fromkeys(row["task"] for row in texts)
    for config in _uses(run, split):
        limits = config.max_new_tokens
        for task in tasks if isinstance(limits, Mapping) else [None]:
            if isinstance(limits, Mapping) and task not in limits:
                continue  # an error of the stage
            own = [row for row in texts if task in (None, row["task"])]
            found = find_long_truths(vlm, own, config.longest(task))
            if found.count:
                yield found.sentence(config.key("max_new_tokens") + (f".{task}" if task else ""))


def _uses(run: Run, split: str) -> Iterator[InferenceConfig]:
    """The sections whose stages answer the prompts of a split."""
    config = run.config
    if split == config.sample.split:
        yield config.sample
    if split in config.eval.splits:
        yield config.eval


def _limits(run: Run, vlm: "Vlm", split: str) -> Iterator[tuple[str, int]]:
    """(what it is, most tokens of a prompt) of the split's uses; the context holds an answer."""
    config, context = run.config, context_length(vlm)
    answers = [one.longest() for one in _uses(run, split)]
    if context is not None and answers:
        longest = max(answers)
        yield (
            f"the model's context of {context:,} leaves beside an answer of {longest:,}",
            context - longest,
        )
    if split == config.sample.split:
        methods = config.train.variants().values()
        packed = min((one.max_tokens_per_forward for one in methods), default=None)
        if packed is not None:
            yield f"train.max_tokens_per_forward ({packed:,}), which memory is planned for", packed


def _largest(tokens: Tokens) -> str:
    at = int(np.argmax(tokens.whole))
    row = tokens.rows[at]
    sizes = " and ".join(f"{width} x {height}" for width, height in sizes_of(row))
    images = "image" if num_images(row) == 1 else "images"
    return (
        f"the largest has {tokens.whole[at]:,}, of which {tokens.image[at]:,} are its {images} of "
        f"{sizes} pixels ({name_prompt(row)})"
    )


def _advice(run: Run, vlm: "Vlm", tokens: Tokens, room: int) -> str:
    """The setting with which every counted image has at most `room` tokens; "" if there is none."""
    from perpo_pipeline.vlm.processors import limits_for_tokens

    most = max(map(num_images, tokens.rows))
    by_size = {
        size: image
        for row, image in zip(tokens.rows, tokens.image, strict=True)
        for size in seen_sizes(row, run.config.model.preprocess)
    }
    largest = sorted(by_size, key=lambda size: by_size[size])[-LARGEST:]
    found = limits_for_tokens(vlm.processor, vlm.family, largest, room // most, usual=USUAL_TOKENS)
    if found is None:
        return ""
    limits, tokens_of_largest = found
    return f": set {limits} (the largest image is then {tokens_of_largest:,} tokens)"
