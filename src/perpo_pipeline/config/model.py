"""The model: which one, and how it sees an image and writes boxes."""

from datetime import date
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from perpo_pipeline import advice
from perpo_pipeline.answers.formats import frame_fault, get_box_format
from perpo_pipeline.answers.settings import ANSWER_TAG, TAG_PATTERN, Reading, Thinking, Which
from perpo_pipeline.config.dates import TEMPLATE_DATE
from perpo_pipeline.config.section import Section, conflict
from perpo_pipeline.errors import ConfigError

TemplateValue = bool | int | float | str | None
DATE_ARGUMENTS = frozenset({"date_string", "strftime_now"})
# The program itself gives these to a chat template, or to the function that renders it.
TAKEN_ARGUMENTS = frozenset(
    {
        *("messages", "conversation", "chat_template", "tools", "documents", "tokenize"),
        *("add_generation_prompt", "continue_final_message", "return_assistant_tokens_mask"),
        *("return_tensors", "return_dict", "load_audio_from_video", "processor_kwargs"),
        *("bos_token", "eos_token", "pad_token", "unk_token", "raise_exception"),
    }
)

SMALLEST_PATCH = 14
"""Pixels along an edge; a family's own minimum needs its processor (vlm/image_limits.py)."""


class AnswerConfig(Section):
    """How the text of an answer is found in a completion."""

    thinking: Thinking = Field(
        "auto",
        description="`auto`: what stands up to the last `</think>` is a thought, no answer; "
        "`opened`: the chat template has opened a thought already; `none`: nothing is a thought",
    )
    tag: str | None = Field(
        ANSWER_TAG,
        pattern=TAG_PATTERN,
        max_length=80,
        description="the answer is what stands inside this tag, where a completion has it; null: "
        "no tag is taken off",
    )
    which: Which = Field(
        "first",
        description="the first or the last of several tags, boxes, points, polygons or numbers",
    )


class ModelConfig(Section):
    """The model and how it sees an image; the same for sampling, training and evaluation."""

    operational: ClassVar[frozenset[str]] = frozenset({"revision", "device"})
    counted_by_content: ClassVar[frozenset[str]] = frozenset({"revision"})

    id: str = Field(
        "testbed",
        description="hub id, local directory, or `testbed` for the shipped model; the fingerprint "
        "counts the model's content, not its name",
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    trust_remote_code: bool = Field(
        False,
        description="runs Python code that comes with the model, in every stage and with a warning "
        f"({advice.page('models')}); `id` is then a local directory, or `revision` a commit",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="number format of the weights; `auto`: bfloat16 on CUDA, else float32. The "
        "chosen format counts",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where the model runs; `auto`: CUDA if torch finds it"
    )
    quantization: Literal["nf4", "int8"] | None = Field(
        None,
        description="keeps the weights of the language model's layers in 4 bits (`nf4`) or 8 "
        f"(`int8`), in every stage; only LoRA trains beside them ({advice.page('small-cards')})",
    )
    preprocess: Literal["processor", "pad"] = Field(
        "processor",
        description="`processor`: what the model's own processor does; `pad`: first pad the image "
        "to a square with the mean colour",
    )
    min_pixels: int | None = Field(
        None,
        ge=1,
        description="smaller images are enlarged to about this number of pixels (Qwen-VL families; "
        f"{advice.page('image-size')}); null: as the model's processor does",
    )
    max_pixels: int | None = Field(
        None,
        ge=1,
        description="larger images are reduced to at most this number of pixels (Qwen-VL families; "
        f"{advice.page('image-size')}); null: as the model's processor does",
    )
    max_tiles: int | None = Field(
        None,
        ge=1,
        description="most tiles that an image is cut into, the whole image not counted "
        f"(LLaVA-NeXT, LLaVA-OneVision, InternVL; {advice.page('image-size')}); null: as the "
        "model's processor does",
    )
    template_date: date = Field(
        TEMPLATE_DATE,
        description="the date that a chat template with today's date writes (YYYY-MM-DD), so that "
        "every stage reads the same prompt on every day; counts only for such templates",
    )
    system_prompt: str | None = Field(
        None,
        description="the text of a system turn before every question "
        f"({advice.page('chat-templates')}); null: none, so that the chat template writes its own, "
        "if it has one",
    )
    chat_template_kwargs: dict[str, TemplateValue] = Field(
        {},
        description="arguments for the model's chat template, such as `{enable_thinking: false}` "
        f"({advice.page('chat-templates')})",
    )
    box_format: str = Field(
        "llava",
        description="how the model writes a box and how it is asked for one: the name of a format "
        f"({advice.page('boxes')}), or pkg.module:attribute for your own",
    )
    box_frame: Literal["full", "crop", "pad", "resized"] = Field(
        "full",
        description="what the numbers of a box refer to: the full image, its centre square, the "
        f"padded square, or the image as Qwen2.5-VL resizes it ({advice.page('boxes')})",
    )

    answer: AnswerConfig = Field(
        AnswerConfig(),
        description=f"how an answer is found in a completion ({advice.page('boxes')})",
    )

    def reading(self) -> Reading:
        """How completions of this model are read."""
        return Reading(self.box_format, self.box_frame, **self.answer.model_dump())

    @field_validator("box_format")
    @classmethod
    def _is_a_format(cls, name: str) -> str:
        try:
            get_box_format(name)
        except ConfigError as error:
            raise ValueError(error.what) from error
        return name

    @field_validator("chat_template_kwargs")
    @classmethod
    def _are_the_templates(cls, given: dict[str, TemplateValue]) -> dict[str, TemplateValue]:
        dated = [name for name in given if name in DATE_ARGUMENTS]
        if dated:
            raise ValueError(f"{dated[0]} is the date, which template_date sets")
        wrong = [name for name in given if name in TAKEN_ARGUMENTS or not name.isidentifier()]
        if wrong:
            raise ValueError(
                f"{wrong[0]} is no argument of a chat template that a run may set: give names that "
                "the template reads, such as enable_thinking"
            )
        return given

    @field_validator("max_pixels")
    @classmethod
    def _is_a_patch(cls, most: int | None) -> int | None:
        if most is not None and most < SMALLEST_PATCH**2:
            raise ValueError(
                f"an image needs at least one patch, of {SMALLEST_PATCH} x {SMALLEST_PATCH} = "
                f"{SMALLEST_PATCH**2} pixels or more"
            )
        return most

    @model_validator(mode="after")
    def _pixels_have_a_range(self) -> Self:
        low, high = self.min_pixels, self.max_pixels
        if low is not None and high is not None and low > high:
            raise conflict(
                f"min_pixels {low:,} is above max_pixels {high:,}", "min_pixels", "max_pixels"
            )
        return self

    @model_validator(mode="after")
    def _frame_fits(self) -> Self:
        if fault := frame_fault(self.box_format, self.box_frame):
            raise conflict(fault, "box_format", "box_frame")
        if self.box_frame == "resized" and self.preprocess == "pad":
            raise conflict(
                "box_frame resized needs the whole image resized without padding, but preprocess "
                "pad pads it: set preprocess to processor",
                "box_frame",
                "preprocess",
            )
        return self
