"""The limits that a run sets on an image's pixels or tiles, as arguments of the image processor.

A family has one kind of limit. With native resolution (Qwen-VL) an image is resized to a number of
pixels between two limits. With tiles it is cut into at most so many: along the best of a list of
grids (LLaVA-NeXT, LLaVA-OneVision), or along the grid of the nearest shape (InternVL). Others
(LLaVA-1.5) have none. The arguments are the same for transformers and vLLM.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from perpo_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from perpo_pipeline.config.model import ModelConfig

WITH_GRIDS = ("config.json", "preprocessor_config.json", "processor_config.json")
PIL_BACKEND: dict[str, Any] = {"use_fast": False}
"""The argument with which vLLM takes the image processor of PIL, as training does."""
PIXELS, TILES = ("min_pixels", "max_pixels"), ("max_tiles",)
GRIDS = "image_grid_pinpoints"
"""The grids of LLaVA-NeXT and LLaVA-OneVision: the model's config has them, too."""


@dataclass(frozen=True)
class ImageLimits:
    """What a run sets; None: as the model's processor does. Tiles leave out the whole image."""

    min_pixels: int | None = None
    max_pixels: int | None = None
    max_tiles: int | None = None

    def given(self) -> dict[str, int]:
        """The limits that are set, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        return ", ".join(f"model.{name}: {value}" for name, value in self.given().items())


NO_LIMITS = ImageLimits()
Rule: TypeAlias = Callable[[Any, ImageLimits], dict[str, Any]]
"""(image processor, limits, of which some are set) -> arguments of the image processor."""


def limits_of(config: "ModelConfig") -> ImageLimits:
    """The limits in the run's file."""
    return ImageLimits(config.min_pixels, config.max_pixels, config.max_tiles)


def limits_recorded(settings: Mapping[str, Any]) -> ImageLimits:
    """The limits in an artifact's settings, which record only those that are set."""
    return ImageLimits(*(settings.get(name) for name in (*PIXELS, *TILES)))


def pixel_limits(image_processor: Any, limits: ImageLimits) -> dict[str, Any]:
    """Qwen-VL: limits on the pixels of the resized image, which has whole image tokens.

    Raises ConfigError for less than one image token, and for a minimum above the maximum, which
    may be the model's own.
    """
    _refuse(limits, TILES, "has no tiles: it resizes each image to a number of pixels", PIXELS)
    edge = image_processor.patch_size * image_processor.merge_size
    own_low, own_high = (image_processor.size[name] for name in ("shortest_edge", "longest_edge"))
    low, high = limits.min_pixels or own_low, limits.max_pixels or own_high
    if high < edge**2:
        raise ConfigError(
            f"model.max_pixels is {high:,}, less than one image token of this model: "
            f"{edge} x {edge} pixels",
            fix=f"set model.max_pixels to {edge**2:,} or more (an image token for each "
            f"{edge**2:,} pixels)",
        )
    if low > high:
        which = "max_pixels" if limits.min_pixels is None else "min_pixels"
        own = "min_pixels" if limits.min_pixels is None else "max_pixels"
        raise ConfigError(
            f"model.{which} is {getattr(limits, which):,}, and the model's own {own} is "
            f"{low if own == 'min_pixels' else high:,}: the minimum is above the maximum",
            fix=f"set model.{own}, too",
        )
    return {"size": {"shortest_edge": low, "longest_edge": high}}


def grid_limits(image_processor: Any, limits: ImageLimits) -> dict[str, Any]:
    """LLaVA-NeXT, LLaVA-OneVision: only the grids of so many tiles; ConfigError if none is left."""
    _refuse(limits, PIXELS, "cuts each image into tiles", TILES)
    size = image_processor.size
    edge = size["shortest_edge"] or size["height"]
    grids = [list(grid) for grid in image_processor.image_grid_pinpoints]
    tiles = [(height // edge) * (width // edge) for height, width in grids]
    most = limits.max_tiles or max(tiles)
    kept = [grid for grid, count in zip(grids, tiles, strict=True) if count <= most]
    if not kept:
        raise ConfigError(
            f"model.max_tiles is {most}, and the smallest grid of this model has {min(tiles)} "
            "tiles beside the whole image",
            fix=f"set model.max_tiles from {min(tiles)} to {max(tiles)}",
        )
    return {GRIDS: kept}


def patch_limits(image_processor: Any, limits: ImageLimits) -> dict[str, Any]:
    """InternVL: at most so many tiles; raises ConfigError below the model's own minimum."""
    _refuse(limits, PIXELS, "cuts each image into tiles", TILES)
    fewest, most = image_processor.min_patches, limits.max_tiles or image_processor.max_patches
    if most < fewest:
        raise ConfigError(
            f"model.max_tiles is {most}, and this model cuts an image into at least {fewest} tiles",
            fix=f"set model.max_tiles to {fewest} or more",
        )
    return {"max_patches": most}


def no_limits(image_processor: Any, limits: ImageLimits) -> dict[str, Any]:
    """Families whose images all have one size, such as LLaVA-1.5."""
    _refuse(limits, (*PIXELS, *TILES), "has no setting for the size of an image", ())
    return {}


def limits_by_class(image_processor: Any, limits: ImageLimits) -> dict[str, Any]:
    """Untried families: the rule that belongs to the image processor's class."""
    from transformers import GotOcr2ImageProcessorPil, Qwen2VLImageProcessorPil

    if isinstance(image_processor, Qwen2VLImageProcessorPil):
        return pixel_limits(image_processor, limits)
    if isinstance(image_processor, GotOcr2ImageProcessorPil):
        return patch_limits(image_processor, limits)
    has_grids = getattr(image_processor, GRIDS, None) is not None
    return (grid_limits if has_grids else no_limits)(image_processor, limits)


def _refuse(limits: ImageLimits, names: tuple[str, ...], why: str, has: tuple[str, ...]) -> None:
    """Raise ConfigError if one of `names` is set."""
    if found := [f"model.{name}" for name in names if name in limits.given()]:
        has_not = " and ".join(found)
        others = " and ".join(f"model.{name}" for name in has)
        raise ConfigError(
            f"{has_not}: this model's family {why}",
            fix=f"remove {has_not}" + (f"; the family's setting is {others}" if has else ""),
        )


def option_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those that vLLM (0.32) takes as an option: it refuses a list of grids."""
    return {name: value for name, value in arguments.items() if name != GRIDS}


def server_advice(arguments: Mapping[str, Any]) -> str:
    """How `vllm serve` is started so that it prepares images in this way."""
    if GRIDS in arguments:
        return (
            f"serve a copy of the model's folder with {GRIDS}: {json.dumps(arguments[GRIDS])} in "
            "config.json and in its processor's file"
        )
    taken = json.dumps({**PIL_BACKEND, **option_arguments(arguments)})
    return f"start vLLM with --mm-processor-kwargs '{taken}'"


def link_with_grids(model: Path, folder: Path, grids: Sequence[Sequence[int]]) -> None:
    """Fill `folder` with links to the files of `model`, and with its settings for these grids."""
    for file in model.iterdir():
        if file.name not in WITH_GRIDS:
            (folder / file.name).symlink_to(file.resolve())
            continue
        settings = json.loads(file.read_text(encoding="utf-8"))
        holder = settings.get("image_processor", settings)
        if file.name != "processor_config.json" or "image_processor" in settings:
            holder[GRIDS] = [list(grid) for grid in grids]
        (folder / file.name).write_text(json.dumps(settings), encoding="utf-8")
