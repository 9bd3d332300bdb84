"""Rules of model families for the size of a resized image and the number of its tokens.

They follow from the processor's settings and the image's size, without pixels.
"""

from typing import Any

from perpo_pipeline.answers.frames import Size, smart_resize

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


def uncut_image_tokens(processor: Any, size: Size) -> int | None:
    """LLaVA-OneVision with several images: each is one tile and a token that ends it."""
    ends = processor.vision_feature_select_strategy != "default"
    return int(processor.num_image_tokens) + int(ends)


def image_tokens_by_class(processor: Any, size: Size) -> int | None:
    """Untried families: the rule that belongs to the processor's class; None for other classes.

    The library's own count may leave out the marks around an image: Gemma 3's does.
    """
    from transformers import LlavaProcessor, Qwen2VLImageProcessorPil

    if isinstance(processor, LlavaProcessor):
        return cropped_image_tokens(processor, size)
    if isinstance(getattr(processor, "image_processor", None), Qwen2VLImageProcessorPil):
        return library_image_tokens(processor, size)
    return None
