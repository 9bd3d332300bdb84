"""Prompts rendered by the embedded testbed: a pure function of (seed, split, index)."""

import io
from collections.abc import Sequence
from functools import partial
from typing import Any

from PIL.Image import Image

from perpo_pipeline.answers.formats import REFERRING_PROMPT
from perpo_pipeline.config.sources import TestbedSource
from perpo_pipeline.json_files import Row
from perpo_pipeline.prepare.collect import Prepared, Request, RowsOnDemand
from perpo_pipeline.prepare.entries import Entry, ImageBytes, ImageFacts, prompt_row
from perpo_pipeline.testbed import testbed_settings
from perpo_pipeline.testbed.pages import PAGE_PROMPT, page_example
from perpo_pipeline.testbed.scenes import referring_example
from perpo_pipeline.vlm.images import image_sha256


def read_testbed(source: TestbedSource, request: Request) -> Prepared:
    """Render the prompts of one split."""
    settings = testbed_settings(request.seed, request.split, source.num_prompts, source.task)
    return Prepared(render_prompts(settings, request.split), settings)


def render_prompts(settings: dict[str, Any], split: str) -> Sequence[Row]:
    """The rows of one split: one scene and one question per row, or one page."""
    return RowsOnDemand(settings["num_prompts"], partial(_render_row, settings, split))


def _render_row(settings: dict[str, Any], split: str, index: int) -> Row:
    draw = _page if settings["task"] == "ocr" else _scene
    entry, image = draw(settings["scene_seed"], index, settings["preset"])
    facts = ImageFacts(image_sha256(entry.image.read()), image.width, image.height)
    return prompt_row(entry, split, facts, embed=True)


def _scene(seed: int, index: int, preset: str) -> tuple[Entry, Image]:
    example = referring_example(seed, index, preset)
    entry = Entry(
        place=f"testbed, scene {index}",
        dataset=f"testbed-{preset}",
        source_row=f"{seed}/{index}",
        task="grounding",
        image=_png(example.image),
        prompt=REFERRING_PROMPT.format(expression=example.expression),
        gt_box=list(example.box_xyxy_px),
    )
    return entry, example.image


def _page(seed: int, index: int, preset: str) -> tuple[Entry, Image]:
    example = page_example(seed, index, preset)
    entry = Entry(
        place=f"testbed, page {index}",
        dataset=f"testbed-pages-{preset}",
        source_row=f"{seed}/{index}",
        task="ocr",
        image=_png(example.image),
        prompt=PAGE_PROMPT,
        gt_text=example.text,
    )
    return entry, example.image


def _png(image: Image) -> ImageBytes:
    png = io.BytesIO()
    image.save(png, format="PNG")
    return ImageBytes(png.getvalue())
