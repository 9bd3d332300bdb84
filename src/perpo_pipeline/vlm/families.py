"""What differs between model families: one record for each, and nowhere else.

A new family is a new entry of `FAMILIES`. Loading, prompts, sampling, training, evaluation and the
warnings about boxes read everything that they need to know about it from this record.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perpo_pipeline.answers.frames import Size, smart_resize
from perpo_pipeline.vlm.files import ResolvedModel
from perpo_pipeline.vlm.image_limits import (
    Rule,
    grid_limits,
    limits_by_class,
    no_limits,
    patch_limits,
    pixel_limits,
)

if TYPE_CHECKING:
    from perpo_pipeline.config.model import ModelConfig

# --- the size of the resized image: (processor, size after padding) -> (width, height) or None ----


def cut_into_tiles(processor: Any, size: Size) -> Size | None:
    """None: the vision tower sees tiles and a thumbnail, not one resized image."""
    return None


def resized_to_setting(processor: Any, size: Size) -> Size | None:
    """LLaVA-1.5: the crop, or the size that the settings name; None for a shortest edge."""
    settings = processor.image_processor
    return _width_and_height(settings.crop_size if settings.do_center_crop else settings.size)


def resized_to_multiples(processor: Any, size: Size) -> Size | None:
    """Qwen-VL: edges are multiples of a patch, within limits on the number of pixels.

    Raises InputError for an edge ratio that the model refuses.
    """
    settings = processor.image_processor
    return smart_resize(
        size,
        factor=settings.patch_size * settings.merge_size,
        min_pixels=settings.size["shortest_edge"],
        max_pixels=settings.size["longest_edge"],
    )


def resized_to_one_tile(processor: Any, size: Size) -> Size | None:
    """InternVL: a tile where the image fits in one, None where it is cut into several."""
    found = processor._get_num_multimodal_tokens(image_sizes=[size[::-1]])  # (height, width)
    is_one_tile = int(found["num_image_patches"][0]) == 1
    return _width_and_height(processor.image_processor.size) if is_one_tile else None


def resized_by_class(processor: Any, size: Size) -> Size | None:
    """Untried families: the rule that belongs to the processor's class; None for other classes.

    Relatives of a family share its processor: Qwen2-VL that of Qwen2.5-VL, ViP-LLaVA LLaVA's.
    """
    from transformers import LlavaProcessor, Qwen2VLImageProcessorPil

    if isinstance(processor.image_processor, Qwen2VLImageProcessorPil):
        return resized_to_multiples(processor, size)
    if isinstance(processor, LlavaProcessor):
        return resized_to_setting(processor, size)
    return None


def _width_and_height(size: Any) -> Size | None:
    """A size setting in pixels; None for a rule such as a shortest edge."""
    width, height = size["width"], size["height"]
    return None if width is None or height is None else (int(width), int(height))


# --- the number of image tokens: (processor, size after padding) -> tokens or None ----------------


def library_image_tokens(processor: Any, size: Size) -> int | None:
    """The library's own count; None where the processor cannot count without pixels."""
    count = getattr(processor, "_get_num_multimodal_tokens", None)
    if count is None:
        return None
    width, height = size
    return int(count(image_sizes=[(height, width)])["num_image_tokens"][0])


def cropped_image_tokens(processor: Any, size: Size) -> int | None:
    """LLaVA-1.5: the library counts the patches of the crop, even if nothing is cropped."""
    if not processor.image_processor.do_center_crop:
        return None
    return library_image_tokens(processor, size)


def image_tokens_by_class(processor: Any, size: Size) -> int | None:
    """Untried families: the rule that belongs to the processor's class."""
    from transformers import LlavaProcessor

    is_llava = isinstance(processor, LlavaProcessor)
    return (cropped_image_tokens if is_llava else library_image_tokens)(processor, size)


# --- the families ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """What differs between model families; the defaults are those of a family never tried.

    `projector` and `vision_tower` are module paths inside the transformers model. `box_format` and
    `box_frame` are what the family's own answers use (see answers/boxes.py); `seen_frame` is the
    frame that its processor leaves of an unpadded image, if that is a crop. `position_axes` is 3
    for multimodal rotary positions (time, height, width). `resized_size` and `image_tokens` follow
    from the processor's settings and the image's size, without pixels. `image_limits` turns the
    run's limits on pixels or tiles into the processor's settings. `lora_in_vllm`: vLLM applies
    the family's language-model LoRA exactly (tests/with_vllm); other adapters are merged first.
    `lmms_eval` is lmms-eval's name for the class that loads the family's checkpoints. A
    family that is not `known` shares no prefix: it is sampled and trained one full row per
    completion.
    """

    name: str
    label: str = ""
    projector: tuple[str, ...] = ("multi_modal_projector",)
    vision_tower: str = "vision_tower"
    box_format: str = "llava"
    box_frame: str = "full"
    seen_frame: str | None = None
    position_axes: int = 1
    resized_size: Callable[[Any, Size], Size | None] = resized_by_class
    image_tokens: Callable[[Any, Size], int | None] = image_tokens_by_class
    image_limits: Rule = limits_by_class
    lora_in_vllm: bool = False
    lmms_eval: str | None = None
    known: bool = True


# transformers' model_type -> family
FAMILIES: dict[str, Family] = {
    "llava": Family(
        "llava",
        "LLaVA-1.5",
        seen_frame="crop",
        resized_size=resized_to_setting,
        image_tokens=cropped_image_tokens,
        image_limits=no_limits,
        lora_in_vllm=True,
        lmms_eval="llava_hf",
    ),
    "llava_next": Family(
        "llava-next",
        "LLaVA-NeXT",
        resized_size=cut_into_tiles,
        image_tokens=library_image_tokens,
        image_limits=grid_limits,
        lora_in_vllm=True,
        lmms_eval="llava_hf",
    ),
    "llava_onevision": Family(
        "llava-onevision",
        "LLaVA-OneVision",
        resized_size=cut_into_tiles,
        image_tokens=library_image_tokens,
        image_limits=grid_limits,
        lmms_eval="llava_hf",
    ),
    "qwen2_5_vl": Family(
        "qwen2.5-vl",
        "Qwen2.5-VL",
        projector=("visual.merger",),
        vision_tower="visual",
        box_format="qwen2.5-vl",
        box_frame="resized",
        position_axes=3,
        resized_size=resized_to_multiples,
        image_tokens=library_image_tokens,
        image_limits=pixel_limits,
        lora_in_vllm=True,
        lmms_eval="qwen2_5_vl",
    ),
    "qwen3_vl": Family(
        "qwen3-vl",
        "Qwen3-VL",
        projector=("visual.merger", "visual.deepstack_merger_list"),
        vision_tower="visual",
        box_format="qwen3-vl",
        position_axes=3,
        resized_size=resized_to_multiples,
        image_tokens=library_image_tokens,
        image_limits=pixel_limits,
        lora_in_vllm=True,
        lmms_eval="qwen3_vl",
    ),
    "internvl": Family(
        "internvl",
        "InternVL (hf ports)",
        box_format="internvl",
        resized_size=resized_to_one_tile,
        image_tokens=library_image_tokens,
        image_limits=patch_limits,
        lmms_eval="internvl_hf",
    ),
}


def family_of(resolved: ResolvedModel) -> Family:
    """The family that a model's config.json names, without loading the model."""
    config = json.loads((resolved.path / "config.json").read_text(encoding="utf-8"))
    return family_of_type(str(config.get("model_type")))


def family_of_type(model_type: str) -> Family:
    """The record of a transformers `model_type`; a family never tried gets the defaults."""
    return FAMILIES.get(model_type) or Family(model_type, model_type, known=False)


def unusual_boxes(family: Family, model: "ModelConfig") -> str | None:
    """A warning where the settings are not what the family's own answers use, or None.

    No error, since a model may be trained to answer in another way. Untried families get no
    warning. The frame may also be what was done to the pixels: `pad` where they are padded, the
    family's `seen_frame` where they are not.
    """
    seen = "pad" if model.preprocess == "pad" else family.seen_frame
    is_usual = model.box_format == family.box_format and model.box_frame in (family.box_frame, seen)
    if not family.known or is_usual:
        return None
    return (
        f"boxes are read and written as box_format {model.box_format}, box_frame "
        f"{model.box_frame}, but {family.name} models answer in {family.box_format}, "
        f"{family.box_frame}: change these settings, unless your model was trained in another way"
    )
