"""What differs between model families: one record for each, and nowhere else.

A new family is a new entry of `FAMILIES`. Loading, prompts, sampling, training, evaluation and the
warnings about boxes read everything that they need to know about it from this record. What tests
found for each is on a page of the manual (docs/models.md).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from perpo_pipeline.answers.frames import Size
from perpo_pipeline.vlm.files import ResolvedModel
from perpo_pipeline.vlm.image_limits import (
    Rule,
    grid_limits,
    limits_by_class,
    no_limits,
    patch_limits,
    pixel_limits,
)
from perpo_pipeline.vlm.image_sizes import (
    cropped_image_tokens,
    cut_into_tiles,
    image_tokens_by_class,
    library_image_tokens,
    resized_by_class,
    resized_to_multiples,
    resized_to_one_tile,
    resized_to_setting,
    uncut_image_tokens,
)

if TYPE_CHECKING:
    from perpo_pipeline.config.model import ModelConfig


@dataclass(frozen=True)
class Family:
    """What differs between model families; the defaults are those of a family without a record.

    `projector` and `vision_tower` are module paths inside the transformers model. `box_format` and
    `box_frame` are what the family's own answers use (see answers/boxes.py), `box_source` who says
    so; without a source there is no format. `seen_frame` is the frame that its processor leaves of
    an unpadded image, if that is a crop. `position_axes` is 3 for multimodal rotary positions
    (time, height, width). `resized_size` and `image_tokens` follow from the processor's settings
    and the image's size, without pixels; `image_tokens_of_several` holds for each image of a prompt
    with several, where that differs. `image_limits` turns the run's limits on pixels or tiles
    into the processor's settings. `lora_in_vllm`: vLLM applies the family's language-model LoRA
    exactly (tests/with_vllm); other adapters are merged first. `lmms_eval` is lmms-eval's name for
    the class that loads the family's checkpoints.

    `known`: the family has a record, so its parts and positions are known. `own_processor`: its
    tests also read images with its own processor; in those of the others, pixels are made by hand.
    """

    name: str
    label: str = ""
    projector: tuple[str, ...] = ("multi_modal_projector",)
    vision_tower: str = "vision_tower"
    box_format: str | None = None
    box_frame: str = "full"
    box_source: str = ""
    seen_frame: str | None = None
    position_axes: int = 1
    resized_size: Callable[[Any, Size], Size | None] = resized_by_class
    image_tokens: Callable[[Any, Size], int | None] = image_tokens_by_class
    image_tokens_of_several: Callable[[Any, Size], int | None] | None = None
    image_limits: Rule = limits_by_class
    lora_in_vllm: bool = False
    lmms_eval: str | None = None
    known: bool = True
    own_processor: bool = True

    @property
    def is_tested(self) -> bool:
        """Whether tests cover the family from its images on; others are proven at the start."""
        return self.known and self.own_processor


_QWEN2_5_VL = Family(
    "qwen2.5-vl",
    "Qwen2.5-VL",
    projector=("visual.merger",),
    vision_tower="visual",
    box_format="qwen2.5-vl",
    box_frame="resized",
    box_source="Qwen's cookbook",
    position_axes=3,
    resized_size=resized_to_multiples,
    image_tokens=library_image_tokens,
    image_limits=pixel_limits,
    lora_in_vllm=True,
    lmms_eval="qwen2_5_vl",
)
_QWEN3_VL = replace(
    _QWEN2_5_VL,
    name="qwen3-vl",
    label="Qwen3-VL",
    projector=("visual.merger", "visual.deepstack_merger_list"),
    box_format="qwen3-vl",
    box_frame="full",
    box_source="Qwen3-VL's report",
    lmms_eval="qwen3_vl",
)
_QWEN3_5 = replace(
    _QWEN3_VL,
    name="qwen3.5",
    label="Qwen3.5",
    projector=("visual.merger",),
    box_format=None,  # no source says how Qwen3.5 answers; see answers/builtin_formats.py
    box_source="",
    lora_in_vllm=False,
    lmms_eval=None,
)
_GLM_4V = Family(
    "glm-4.1v",
    "GLM-4.1V",
    projector=("visual.downsample", "visual.merger"),
    vision_tower="visual",
    box_format="glm-v",
    box_source="README of zai-org/GLM-V",
    position_axes=3,
    own_processor=False,
)
_IDEFICS3 = Family(
    "idefics3",
    "Idefics 3",
    projector=("connector",),
    vision_tower="vision_model",
    own_processor=False,
)
# transformers' model_type -> family
FAMILIES: dict[str, Family] = {
    "llava": Family(
        "llava",
        "LLaVA-1.5",
        box_format="llava",
        box_source="published answers of LLaVA-1.5-7B",
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
        box_format="llava",
        box_source="as LLaVA-1.5",
        resized_size=cut_into_tiles,
        image_tokens=library_image_tokens,
        image_limits=grid_limits,
        lora_in_vllm=True,
        lmms_eval="llava_hf",
    ),
    "llava_onevision": Family(
        "llava-onevision",
        "LLaVA-OneVision",
        box_format="llava",
        box_source="as LLaVA-1.5",
        resized_size=cut_into_tiles,
        image_tokens=library_image_tokens,
        image_tokens_of_several=uncut_image_tokens,
        image_limits=grid_limits,
        lmms_eval="llava_hf",
    ),
    "qwen2_vl": replace(
        _QWEN2_5_VL,
        name="qwen2-vl",
        label="Qwen2-VL",
        box_format="qwen2-vl",
        box_frame="full",
        box_source="the published box",
        lora_in_vllm=False,
        lmms_eval=None,
    ),
    "qwen2_5_vl": _QWEN2_5_VL,
    "qwen3_vl": _QWEN3_VL,
    "qwen3_vl_moe": replace(
        _QWEN3_VL,
        name="qwen3-vl-moe",
        label="Qwen3-VL-MoE",
        lora_in_vllm=False,
        lmms_eval=None,
    ),
    "qwen3_5": _QWEN3_5,
    "qwen3_5_moe": replace(_QWEN3_5, name="qwen3.5-moe", label="Qwen3.5-MoE"),
    "internvl": Family(
        "internvl",
        "InternVL (hf ports)",
        box_format="internvl",
        box_source="InternVL's evaluation of RefCOCO",
        resized_size=resized_to_one_tile,
        image_tokens=library_image_tokens,
        image_limits=patch_limits,
        lmms_eval="internvl_hf",
    ),
    "gemma3": Family("gemma3", "Gemma 3"),
    "gemma4": Family(
        "gemma4",
        "Gemma 4",
        projector=("embed_vision",),
        box_format="gemma",
        box_source="Gemma 4 post of the Hugging Face blog",
        own_processor=False,
    ),
    "paligemma": Family(
        "paligemma",
        "PaliGemma",
        box_format="paligemma",
        box_source="google-research/big_vision",
        own_processor=False,
    ),
    "glm4v": _GLM_4V,
    "glm4v_moe": replace(_GLM_4V, name="glm-4.5v", label="GLM-4.5V"),
    "glm46v": replace(_GLM_4V, name="glm-4.6v", label="GLM-4.6V"),
    "glm_ocr": replace(_GLM_4V, name="glm-ocr", label="GLM-OCR", box_format=None, box_source=""),
    "paddleocr_vl": Family(
        "paddleocr-vl",
        "PaddleOCR-VL",
        projector=("projector",),
        vision_tower="visual",
        position_axes=3,
        own_processor=False,
    ),
    "lighton_ocr": Family(
        "lighton-ocr",
        "LightOnOCR",
        projector=("vision_projection",),
        vision_tower="vision_encoder",
        own_processor=False,
    ),
    "got_ocr2": Family("got-ocr2", "GOT-OCR 2", own_processor=False),
    "mistral3": Family("mistral3", "Mistral 3", own_processor=False),
    "aya_vision": Family("aya-vision", "Aya Vision"),
    "cohere2_vision": Family("cohere2-vision", "Cohere 2 Vision", own_processor=False),
    "ovis2": Family(
        "ovis2",
        "Ovis 2",
        projector=(
            "vision_tower.head_linear",
            "vision_tower.head_norm",
            "visual_embeddings_table",
        ),
        own_processor=False,
    ),
    "idefics3": _IDEFICS3,
    "smolvlm": replace(_IDEFICS3, name="smolvlm", label="SmolVLM"),
    "lfm2_vl": Family("lfm2-vl", "LFM2-VL", own_processor=False),
    "deepseek_ocr2": Family("deepseek-ocr2", "DeepSeek-OCR 2", own_processor=False),
    "ernie4_5_vl_moe": Family(
        "ernie-4.5-vl",
        "ERNIE-4.5-VL",
        projector=("resampler_model",),
        position_axes=3,
        resized_size=resized_to_multiples,
        image_tokens=library_image_tokens,
        image_limits=pixel_limits,
    ),
}


def family_of(resolved: ResolvedModel) -> Family:
    """The family that a model's config.json names, without loading the model."""
    config = json.loads((resolved.path / "config.json").read_text(encoding="utf-8"))
    return family_of_type(str(config.get("model_type")), own_code=resolved.own_code)


def family_of_type(model_type: str, *, own_code: bool = False) -> Family:
    """The record of a transformers `model_type`; one without a record gets the defaults.

    `own_code`: so does a model that brings code of its own, whatever it calls its type: no test has
    seen that code.
    """
    found = None if own_code else FAMILIES.get(model_type)
    return found or Family(model_type, model_type, known=False)


def unusual_boxes(family: Family, model: "ModelConfig") -> str | None:
    """A warning where the settings are not what the family's own answers use, or None.

    No error, since a model may be trained to answer in another way. Families whose own format no
    source states get no warning. The frame may also be what was done to the pixels: `pad` where
    they are padded, the family's `seen_frame` where they are not.
    """
    seen = "pad" if model.preprocess == "pad" else family.seen_frame
    is_usual = model.box_format == family.box_format and model.box_frame in (family.box_frame, seen)
    if family.box_format is None or is_usual:
        return None
    return (
        f"boxes are read and written as box_format {model.box_format}, box_frame "
        f"{model.box_frame}, but {family.name} models answer in {family.box_format}, "
        f"{family.box_frame}: change these settings, unless your model was trained in another way"
    )
