"""Does a model take several images in a prompt? Found out with its own template and processor."""

from typing import TYPE_CHECKING

import pyarrow as pa

from perpo_pipeline.errors import InputError, first_line
from perpo_pipeline.store.places import name_prompt
from perpo_pipeline.store.prompt_images import first_with_several
from perpo_pipeline.vlm.chat_rendering import QUESTION, refusals
from perpo_pipeline.vlm.image_place import turns_of

if TYPE_CHECKING:
    from perpo_pipeline.vlm.models import Vlm

SIZE = (64, 48)  # of the made-up images, width and height


def refuse_several_images(vlm: "Vlm", prompts: pa.Table) -> None:
    """Raise InputError if one of these prompts has several images and the model takes one.

    `prompts` has the columns prompt_id, place and more_image_facts.
    """
    row = first_with_several(prompts)
    if row is None or (why := _why_one_image(vlm)) is None:
        return
    raise InputError(
        f"the prompt has several images, and this {vlm.family.label} model takes one: {why}",
        where=name_prompt(row),
        fix="choose another model.id, or leave out the rows with several images",
    )


def _why_one_image(vlm: "Vlm") -> str | None:
    """What happens to a prompt with two made-up images, if not what should; else None."""
    from PIL import Image

    from perpo_pipeline.vlm.prompts import count_prompt_tokens, encode_prompt

    refused: tuple[type[Exception], ...] = (
        *refusals(),
        LookupError,
        RuntimeError,
        AttributeError,
    )
    images = [Image.new("RGB", SIZE, colour) for colour in ("grey", "white")]
    try:
        encoded = encode_prompt(vlm, images, turns_of(QUESTION, images=len(images)))
        expected = count_prompt_tokens(vlm, encoded.text, *[SIZE] * len(images))
    except InputError as error:
        return error.what
    except refused as error:
        return f"{type(error).__name__}: {first_line(error)}"
    if expected not in (None, encoded.num_tokens):
        return f"its processor makes {encoded.num_tokens} tokens of two, not {expected}"
    return None
