"""Images and an instruction become what a model reads; its tokens and sizes without pixels."""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from perpo_pipeline.answers.frames import Size
from perpo_pipeline.errors import ConfigError, InputError, first_line
from perpo_pipeline.vlm.chat import CLOSE
from perpo_pipeline.vlm.chat_rendering import (
    ANSWER,
    IMAGE_PART,
    QUESTION,
    Message,
    asked,
    refusals,
    render_chat,
    text_part,
    turn_form,
    user_turn,
)
from perpo_pipeline.vlm.image_place import IMAGE_PLACE, USER, Turn, turns_of
from perpo_pipeline.vlm.models import TYPE_NAMES, EncodedPrompt, Vlm, base_model
from perpo_pipeline.vlm.per_token import EXPERT_TYPES
from perpo_pipeline.vlm.plain_text import JOINT
from perpo_pipeline.vlm.processors import writes_begin_token

if TYPE_CHECKING:
    from PIL import Image

Asked: TypeAlias = str | Sequence[Turn]
"""What is asked: a text about one image, or turns with their images (image_place.py)."""
_FIX = "leave out the rows with `history` or several images, or use another chat template"


def render_prompt(vlm: Vlm, prompt: Asked) -> str:
    """The chat template's text: the prompt's turns, and the start of the assistant's turn.

    A text alone is one turn of the user with one image, which is where `turns_of` finds its place.
    Control tokens that the prompt spells are marked as text (see plain_text.py). Raises InputError
    for places that are not those of the images, and for a template that leaves out an earlier turn
    or an image.
    """
    turns = turns_of(prompt) if isinstance(prompt, str) else prompt
    messages = [_message(vlm, turn) for turn in turns]
    if len(turns) == 1 and turns[0].num_images == 1:
        return render_chat(vlm, messages, generation=True)
    try:
        rendered = render_chat(vlm, messages, generation=True)
    except refusals() as error:
        raise InputError(
            f"the model's chat template refuses the prompt's turns: {first_line(error)}", fix=_FIX
        ) from error
    _check_whole(vlm, turns, rendered)
    return rendered


def _message(vlm: Vlm, turn: Turn) -> Message:
    """A turn in the form that the chat template reads."""
    texts = [vlm.plain.mark(text) for text in turn.texts]
    if turn.role != USER:
        return {"role": turn.role, "content": turn_form(vlm, turn.role)(texts[0])}
    if any(texts[:-1]) and moves_image(vlm):
        placeholder = str(getattr(vlm.processor, "image_token", IMAGE_PLACE))
        return user_turn(text_part(placeholder.join(texts)))
    parts = [text_part(texts[0])] if texts[0] else []
    for text in texts[1:]:
        parts += [IMAGE_PART, *([text_part(text)] if text else [])]
    return user_turn(*parts)


def _check_whole(vlm: Vlm, turns: Sequence[Turn], rendered: str) -> None:
    """Raise InputError if the template wrote not all earlier turns, or not all of several images.

    What stands up to the end of an earlier thought may be missing: templates leave it out.
    """
    for turn in turns[:-1]:
        texts = [vlm.plain.mark(text.rpartition(CLOSE)[2]).strip() for text in turn.texts]
        if any(text not in rendered for text in texts):
            raise InputError(
                f"the model's chat template does not write the earlier turn of the {turn.role}",
                fix=_FIX,
            )
    images = sum(turn.num_images for turn in turns)
    if images == 1:
        return
    one = render_chat(vlm, [asked()], generation=True)
    for name in ("image_token", "boi_token"):
        mark = str(getattr(vlm.processor, name, None) or JOINT)
        if (each := one.count(mark)) and rendered.count(mark) != each * images:
            raise InputError(
                f"the model's chat template writes {rendered.count(mark) // each} of the prompt's "
                f"{images} images ({vlm.family.label})",
                fix=_FIX,
            )


def moves_image(vlm: Vlm) -> bool:
    """Whether the chat template puts the image first, wherever its place in the message is."""
    parts = (text_part(QUESTION), IMAGE_PART, text_part(ANSWER))
    rendered = render_chat(vlm, [user_turn(*parts)], generation=True)
    return not rendered.partition(QUESTION)[2].partition(ANSWER)[0].strip()


def rendered_ids(vlm: Vlm, text: str) -> list[int]:
    """Token ids of a rendered prompt, with one placeholder for each image."""
    return vlm.plain.ids(text, add_special_tokens=adds_special_tokens(vlm, text))


def answer_ids(vlm: Vlm, prompt: Asked, answer: str, start: str = "") -> list[int]:
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
    vlm: Vlm,
    image: "Image.Image | Sequence[Image.Image]",
    prompt: Asked,
    *,
    preprocess: str = "processor",
    box_image: int = 0,
) -> EncodedPrompt:
    """Encode the RGB image, or images in their order, and an instruction or turns.

    Tensors stay on the CPU. preprocess: see `prepare_image`; `box_image` is the place of the image
    that boxes refer to. Raises InputError for places in the text that are not those of the images,
    ConfigError for an unknown `preprocess`.
    """
    given = [*image] if isinstance(image, Sequence) else [image]
    images = [prepare_image(vlm, one, preprocess) for one in given]
    if isinstance(prompt, str):
        prompt = turns_of(prompt, images=len(images))
    text = render_prompt(vlm, prompt)
    inputs = vlm.plain.processor(vlm.processor, text)(
        images=images if len(images) == 1 else [images],
        text=[text],
        add_special_tokens=adds_special_tokens(vlm, text),
        return_tensors="pt",
    )
    input_ids = inputs.pop("input_ids")
    for unused in ("attention_mask", "labels", EXPERT_TYPES):
        inputs.pop(unused, None)
    found = [inputs.pop(name, None) for name in TYPE_NAMES]
    token_types = next((types for types in found if types is not None), None)
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    positions = prompt_positions(vlm, input_ids, token_types, tensors)
    resized = _resized(vlm, tensors, box_image)
    if len(images) > 1 and "image_grid_thw" not in tensors:
        resized = resized_size(vlm, images[box_image].size)
    return EncodedPrompt(
        input_ids=input_ids[0],
        tensors=tensors,
        positions=positions,
        next_position=int(positions.max()) + 1,
        image_size=given[box_image].size,
        padded_size=images[box_image].size,
        resized=resized,
        text=text,
        token_types=None if token_types is None else token_types[0],
    )


def count_prompt_tokens(vlm: Vlm, text: str, *sizes: Size) -> int | None:
    """Tokens of `encode_prompt` for a rendered prompt and images of `sizes` (width, height).

    `text` holds one placeholder for each image; sizes are those after any padding. None where the
    family's rule needs the pixels.
    """
    images = count_image_tokens(vlm, *sizes)
    if images is None:
        return None
    return len(rendered_ids(vlm, text)) - len(sizes) + images


def count_image_tokens(vlm: Vlm, *sizes: Size) -> int | None:
    """Tokens of all images of a prompt; None where the family's rule needs the pixels."""
    rule = vlm.family.image_tokens
    if len(sizes) > 1 and vlm.family.image_tokens_of_several is not None:
        rule = vlm.family.image_tokens_of_several
    counts = [rule(vlm.processor, size) for size in sizes]
    return None if None in counts else sum(count for count in counts if count is not None)


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


def _resized(vlm: Vlm, tensors: dict[str, Tensor], place: int) -> tuple[int, int] | None:
    """The size of the image at this place as the vision tower sees it, from the tensors."""
    grid = tensors.get("image_grid_thw")
    if grid is not None:
        patch = int(vlm.processor.image_processor.patch_size)
        return int(grid[place, 2]) * patch, int(grid[place, 1]) * patch
    pixels = tensors.get("pixel_values")
    if pixels is None or pixels.ndim != 4 or pixels.shape[0] != 1:
        return None
    if "num_local_patches" in tensors:  # DeepSeek-OCR 2: tiles, and a view padded to a square
        return None
    return pixels.shape[3], pixels.shape[2]
