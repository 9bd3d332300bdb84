"""An image and an instruction become what a model reads; its tokens and sizes without pixels."""

import inspect
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from perpo_pipeline.answers.frames import Size
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.vlm.chat_rendering import (
    ANSWER,
    IMAGE_PART,
    QUESTION,
    render_chat,
    text_part,
    user_turn,
)
from perpo_pipeline.vlm.image_place import IMAGE_PLACE, split_at_image
from perpo_pipeline.vlm.models import TYPE_NAMES, EncodedPrompt, Vlm, base_model
from perpo_pipeline.vlm.processors import writes_begin_token

if TYPE_CHECKING:
    from PIL import Image


def render_prompt(vlm: Vlm, prompt: str) -> str:
    """The chat template's text: the image, `prompt`, the start of the assistant's turn.

    The image is where `split_at_image` finds its place. Control tokens that the prompt spells are
    marked as text (see plain_text.py). Raises InputError for several places.
    """
    before, after = (vlm.plain.mark(text) for text in split_at_image(prompt))
    if not before:
        return render_chat(vlm, [user_turn(IMAGE_PART, text_part(after))], generation=True)
    if moves_image(vlm):
        placeholder = str(getattr(vlm.processor, "image_token", IMAGE_PLACE))
        return render_chat(
            vlm, [user_turn(text_part(before + placeholder + after))], generation=True
        )
    parts = [text_part(before), IMAGE_PART, *([text_part(after)] if after else [])]
    return render_chat(vlm, [user_turn(*parts)], generation=True)


def moves_image(vlm: Vlm) -> bool:
    """Whether the chat template puts the image first, wherever its place in the message is."""
    parts = (text_part(QUESTION), IMAGE_PART, text_part(ANSWER))
    rendered = render_chat(vlm, [user_turn(*parts)], generation=True)
    return not rendered.partition(QUESTION)[2].partition(ANSWER)[0].strip()


def rendered_ids(vlm: Vlm, text: str) -> list[int]:
    """Token ids of a rendered prompt, with one placeholder for the image."""
    return vlm.plain.ids(text, add_special_tokens=adds_special_tokens(vlm, text))


def answer_ids(vlm: Vlm, prompt: str, answer: str, start: str = "") -> list[int]:
    """Token ids of an answer as the model would write it, without the end token.

    The answer is tokenised together with the rendered prompt before it, separated by a space if the
    template leaves none, so its first token is the one that the model starts an answer with.
    `start` is what the template writes before an answer. Control tokens that the answer spells stay
    text; raises InputError where the tokenizer cannot do that.
    """
    rendered = render_prompt(vlm, prompt)
    separator = "" if rendered[-1:].isspace() or start else " "
    answer = start + vlm.plain.mark(answer)
    before = vlm.plain.ids(rendered)
    whole = vlm.plain.ids(rendered + separator + answer)
    follows = whole[: len(before)] == before
    return whole[len(before) :] if follows else vlm.plain.ids(answer)


def prepare_image(vlm: Vlm, image: "Image.Image", preprocess: str) -> "Image.Image":
    """The RGB image that the processor gets.

    preprocess: `processor` leaves it as it is; `pad` pads it to a centred square with the
    processor's mean colour (LLaVA's `image_aspect_ratio pad`). Raises ConfigError for others.
    """
    if preprocess not in ("processor", "pad"):
        raise ConfigError(f"preprocess is {preprocess!r}; it must be 'processor' or 'pad'.")
    if preprocess == "processor":
        return image
    from perpo_pipeline.vlm.images import pad_to_square

    red, green, blue = vlm.processor.image_processor.image_mean
    return pad_to_square(image, (red, green, blue))


def adds_special_tokens(vlm: Vlm, text: str) -> bool:
    """Whether the tokenizer must add its begin token: not if the rendered prompt has one."""
    return not writes_begin_token(vlm.tokenizer, text)


def encode_prompt(
    vlm: Vlm, image: "Image.Image", prompt: str, *, preprocess: str = "processor"
) -> EncodedPrompt:
    """Encode an RGB image and an instruction; tensors stay on the CPU.

    preprocess: see `prepare_image`. Raises InputError for a prompt with several places for the
    image, ConfigError for an unknown `preprocess`.
    """
    given = image.size
    image = prepare_image(vlm, image, preprocess)
    text = render_prompt(vlm, prompt)
    inputs = vlm.plain.processor(vlm.processor, text)(
        images=[image],
        text=[text],
        add_special_tokens=adds_special_tokens(vlm, text),
        return_tensors="pt",
    )
    input_ids = inputs.pop("input_ids")
    for unused in ("attention_mask", "labels"):
        inputs.pop(unused, None)
    found = [inputs.pop(name, None) for name in TYPE_NAMES]
    token_types = next((types for types in found if types is not None), None)
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    positions = prompt_positions(vlm, input_ids, token_types, tensors)
    return EncodedPrompt(
        input_ids=input_ids[0],
        tensors=tensors,
        positions=positions,
        next_position=int(positions.max()) + 1,
        image_size=given,
        padded_size=image.size,
        resized=_resized(vlm, tensors),
        text=text,
        token_types=None if token_types is None else token_types[0],
    )


def count_prompt_tokens(vlm: Vlm, text: str, size: Size) -> int | None:
    """Tokens of `encode_prompt` for a rendered prompt and an image of `size` (width, height).

    `text` holds one image placeholder; `size` is the image's after any padding. None where the
    family's rule needs the pixels.
    """
    image_tokens = vlm.family.image_tokens(vlm.processor, size)
    if image_tokens is None:
        return None
    return len(rendered_ids(vlm, text)) - 1 + image_tokens


def resized_size(vlm: Vlm, size: Size) -> Size | None:
    """(width, height) of what the vision tower sees of an image of `size`, which is after padding.

    Equals `EncodedPrompt.resized`, without pixels. None where the image is cut into tiles, and for
    processors whose rule is not known. Raises InputError for an edge ratio that the model refuses.
    """
    return vlm.family.resized_size(vlm.processor, size)


def prompt_positions(
    vlm: Vlm, input_ids: Tensor, token_types: Tensor | None, tensors: dict[str, Tensor]
) -> Tensor:
    """Rotary positions (A, P) of a prompt; with several axes they follow the image's grid.

    An untried family whose rule needs something else gets one axis: only a shared prefix reads
    these positions, and its proof then fails.
    """
    one_axis = torch.arange(input_ids.shape[1])[None]
    if vlm.position_axes == 1:
        return one_axis
    rule = base_model(vlm.model).model.get_rope_index
    known = {"mm_token_type_ids": token_types, **tensors}
    taken = {name: known[name] for name in inspect.signature(rule).parameters if name in known}
    try:
        positions, _ = rule(input_ids, **taken)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        if vlm.family.is_tested:
            raise
        return one_axis
    return torch.as_tensor(positions)[:, 0]


def _resized(vlm: Vlm, tensors: dict[str, Tensor]) -> tuple[int, int] | None:
    grid = tensors.get("image_grid_thw")
    if grid is not None:
        patch = int(vlm.processor.image_processor.patch_size)
        return int(grid[0, 2]) * patch, int(grid[0, 1]) * patch
    pixels = tensors.get("pixel_values")
    if pixels is None or pixels.ndim != 4 or pixels.shape[0] != 1:
        return None
    return pixels.shape[3], pixels.shape[2]
