"""What differs between model families, one record each."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perpo_pipeline.vlm.files import ResolvedModel

if TYPE_CHECKING:
    from perpo_pipeline.config.run import ModelConfig


@dataclass(frozen=True)
class Family:
    """What differs between model families, as data.

    `projector` and `vision_tower` are module paths inside the transformers model; `box_format` and
    `frame` what the family's own answers use (see boxes.py), a default for the config;
    `position_axes` is 3 for multimodal rotary positions (time, height, width). A family that is not
    `known` was never tried: it is sampled and trained the plain way.
    """

    name: str
    projector: tuple[str, ...] = ("multi_modal_projector",)
    vision_tower: str = "vision_tower"
    box_format: str = "llava"
    frame: str = "full"
    position_axes: int = 1
    known: bool = True


_QWEN_MERGERS = ("visual.merger", "visual.deepstack_merger_list")


# transformers' model_type -> family
FAMILIES: dict[str, Family] = {
    "llava": Family("llava"),
    "llava_next": Family("llava-next"),
    "llava_onevision": Family("llava-onevision"),
    "qwen2_5_vl": Family("qwen2.5-vl", _QWEN_MERGERS[:1], "visual", "qwen2.5-vl", "resized", 3),
    "qwen3_vl": Family("qwen3-vl", _QWEN_MERGERS, "visual", "qwen3-vl", "full", 3),
    "internvl": Family("internvl", box_format="internvl"),
}


def family_of(resolved: ResolvedModel) -> Family:
    """The family that a model's config.json names, without loading the model."""
    config = json.loads((resolved.path / "config.json").read_text(encoding="utf-8"))
    name = str(config.get("model_type"))
    return family_of_type(name)


def family_of_type(model_type: str) -> Family:
    return FAMILIES.get(model_type) or Family(model_type, known=False)


def unusual_boxes(family: "Family", model: "ModelConfig") -> str | None:
    """What to tell the user where the settings are not what the family's own answers use, or None.

    A model trained to answer otherwise is why it is no error. Nothing is known of an untried
    family. The frame may also be what was done to the pixels: `pad` where they are padded, `crop`
    for LLaVA-1.5, whose processor crops.
    """
    frames = {family.frame}
    if model.preprocess == "pad":
        frames.add("pad")
    elif family.name == "llava":
        frames.add("crop")
    if not family.known or (model.box_format == family.box_format and model.box_frame in frames):
        return None
    return (
        f"boxes are read and written as box_format {model.box_format}, box_frame "
        f"{model.box_frame}, but {family.name} models answer in {family.box_format}, "
        f"{family.frame}: change these settings, unless yours was trained otherwise"
    )
