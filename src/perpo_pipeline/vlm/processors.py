"""Load a model's processor for images and text only, without its video part.

transformers (5.19) builds most families' processors together with a video processor, which needs
torchvision. Without torchvision the whole processor cannot be built; with it, the video part
refuses `backend="pil"`, which every part gets. This package never reads a video, so the part is
left out; everything else is the library's own class, read from the model's own files.
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from perpo_pipeline.answers.settings import THOUGHTS
from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.vlm.families import Family, family_of_type
from perpo_pipeline.vlm.image_limits import GRIDS, NO_LIMITS, ImageLimits
from perpo_pipeline.vlm.load_errors import no_pil_version
from perpo_pipeline.vlm.own_code import never_ask
from perpo_pipeline.vlm.plain_text import is_read

LEFT_OUT = "perpo_left_out"  # attribute of a tokenizer: see _left_out
MOST_TILES = 36  # of LLaVA-OneVision: more than the others


def files_only(*, own_code: bool) -> dict[str, Any]:
    """How transformers loads a model: from its folder, with its own code if that may run."""
    never_ask()
    return {"local_files_only": True, "trust_remote_code": own_code}


def load_processor(path: Path, limits: ImageLimits = NO_LIMITS, *, own_code: bool = False) -> Any:
    """Load image processor (always the PIL backend), tokenizer and chat template from `path`.

    The torchvision backend gives slightly other pixels (CLIP: by up to 0.015), so it is never used,
    even if installed. Code in the directory runs only with `own_code`. `limits` become settings of
    the image processor. Raises InputError if the model's image processor has no PIL version,
    ConfigError as `image_arguments`, and the library's own OSError or ValueError for missing or
    damaged files.
    """
    from transformers import PROCESSOR_MAPPING, AutoConfig, AutoProcessor

    how = files_only(own_code=own_code)
    config = AutoConfig.from_pretrained(path, **how)
    processor_class: Any = AutoProcessor
    if type(config) in PROCESSOR_MAPPING:
        usual: Any = PROCESSOR_MAPPING[type(config)]
        if usual.get_attributes()[-1:] == ["video_processor"]:
            processor_class = without_video(usual)
    processor = processor_class.from_pretrained(path, backend="pil", **how)
    _check_backend(processor, path)
    if limits.given():
        image_processor = processor.image_processor
        _set(image_processor, image_arguments(image_processor, config.model_type, limits))
    return processor


def _set(image_processor: Any, arguments: Mapping[str, Any]) -> None:
    for name, value in arguments.items():
        own_type = type(getattr(image_processor, name))
        setattr(image_processor, name, own_type(**value) if name == "size" else value)


def image_arguments(image_processor: Any, model_type: str, limits: ImageLimits) -> dict[str, Any]:
    """The arguments of an image processor that set these limits; none without limits.

    transformers, vLLM in this process and a vLLM server all take them. Raises ConfigError for a
    limit that the family does not have, or that is impossible for the model.
    """
    return (
        family_of_type(model_type).image_limits(image_processor, limits) if limits.given() else {}
    )


def arguments_from_files(
    path: Path, limits: ImageLimits, *, own_code: bool = False
) -> dict[str, Any]:
    """`image_arguments` of the model in a folder, which needs no weights."""
    if not limits.given():
        return {}
    from transformers import AutoConfig

    # transformers 5.16 without torchvision exports a placeholder under the top-level name; a
    # processor takes its image processor from this module, too.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    how = files_only(own_code=own_code)
    config = AutoConfig.from_pretrained(path, **how)
    load: Any = AutoImageProcessor.from_pretrained
    image_processor = load(path, backend="pil", **how)
    return image_arguments(image_processor, config.model_type, limits)


def limits_for_tokens(
    processor: Any, family: Family, sizes: Collection[tuple[int, int]], most: int, *, usual: int
) -> tuple[ImageLimits, int] | None:
    """Limits with which images of these sizes have at most `most` tokens, and the most they have.

    The widest limit, but with native resolution `usual` tokens at most; None if there is none.
    Sizes are (width, height) after padding.
    """
    own, edge = processor.image_processor, getattr(processor.image_processor, "patch_size", None)
    pixels = []
    if isinstance(edge, int):
        token = (edge * getattr(own, "merge_size", 1)) ** 2
        pixels = [ImageLimits(max_pixels=max(1, min(most, usual)) * token)]
    for limits in [*pixels, *(ImageLimits(max_tiles=n) for n in range(MOST_TILES, 0, -1))]:
        limited = copy.copy(processor)
        limited.image_processor = copy.copy(own)
        try:
            _set(limited.image_processor, family.image_limits(own, limits))
        except ConfigError:
            continue
        counts = [family.image_tokens(limited, size) for size in sizes]
        found = max((count for count in counts if count is not None), default=0)
        if 0 < found <= most:
            return limits, found
    return None


def limit_grids(config: Any, processor: Any) -> None:
    """Let a model's config have the grids of its processor: it computes the features' places."""
    grids = getattr(processor.image_processor, GRIDS, None)
    if grids is not None and getattr(config, GRIDS, None) is not None:
        setattr(config, GRIDS, grids)


def without_video(processor_class: Any) -> Any:
    """The same processor class without its video part, which is then neither loaded nor saved.

    The library loads, checks and saves the parts that `get_attributes` names. It passes parts by
    position, so a video part can be left out only if it is the last, as in every known family.
    """
    parts = processor_class.get_attributes()[:-1]
    overrides = {
        "get_attributes": classmethod(lambda _: list(parts)),
        "__module__": processor_class.__module__,
        "__reduce__": lambda self: (_restored, (processor_class, dict(vars(self)))),  # to pickle
    }
    return type(processor_class.__name__, (processor_class,), overrides)


def _restored(processor_class: Any, state: dict[str, Any]) -> Any:
    processor = object.__new__(without_video(processor_class))
    vars(processor).update(state)
    return processor


def decode_completions(tokenizer: Any, ids: Sequence[Sequence[int]]) -> list[str]:
    """The text of each completion, without special tokens; all backends use this.

    Locations (as Florence-2's), the marks of boxes and points (`plain_text.is_read`) and those of a
    thought stay, also where the tokenizer calls them special: an answer could not be read without
    them.
    """
    if not hasattr(tokenizer, LEFT_OUT):  # its added tokens are listed anew at each look
        setattr(tokenizer, LEFT_OUT, _left_out(tokenizer))
    left_out: frozenset[int] | None = getattr(tokenizer, LEFT_OUT)
    keeps = left_out is not None
    if left_out is not None:
        ids = [[token for token in one if int(token) not in left_out] for one in ids]
    texts: list[str] = tokenizer.batch_decode(
        ids, skip_special_tokens=not keeps, clean_up_tokenization_spaces=False
    )
    return texts


def _left_out(tokenizer: Any) -> frozenset[int] | None:
    """The special tokens that no text shows, if it shows some; None if it shows none of them."""
    added = tokenizer.added_tokens_decoder
    special = {int(i): token.content for i, token in added.items() if token.special}
    found = frozenset(i for i, content in special.items() if not _is_kept(content))
    return found if len(found) < len(special) else None


def _is_kept(token: str) -> bool:
    return is_read(token) or any(token in pair for pair in THOUGHTS)


def writes_begin_token(tokenizer: Any, text: str) -> bool:
    """Whether a rendered prompt already has the begin token and must not get a second one."""
    return bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)


def _check_backend(processor: Any, path: Path) -> None:
    """Raise InputError for another backend: the library falls back to it with only a warning."""
    from transformers.image_processing_backends import PilBackend

    image_processor = getattr(processor, "image_processor", None)
    if image_processor is not None and not isinstance(image_processor, PilBackend):
        what, fix = no_pil_version(type(image_processor).__name__)
        raise InputError(f"The model cannot be loaded: {what}", where=str(path), fix=fix)
