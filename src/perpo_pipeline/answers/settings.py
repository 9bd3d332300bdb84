"""How completions are read: the settings of the steps in pipeline.py.

This module imports no NumPy, because the settings of a run are checked against it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from perpo_pipeline.answers.formats import describe_box_format

Thinking: TypeAlias = Literal["auto", "opened", "none"]
Which: TypeAlias = Literal["first", "last"]

THOUGHTS = (
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen3, GLM-4.1V and 4.5V, VLM-R1, InternVL3.5, MiMo-VL
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("◁think▷", "◁/think▷"),  # Kimi-VL
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, LlamaV-o1
    ("<|channel>", "<channel|>"),  # Gemma 4
)
"""The marks around a thought, in any letter case; one model uses one pair of them."""

ANSWER_TAG = "answer"
TAG_PATTERN = r"^[A-Za-z][A-Za-z0-9_:-]*$"


@dataclass(frozen=True)
class Reading:
    """How completions are read; see docs/boxes.md.

    `box_format` and `box_frame` say what the numbers of a box mean (boxes.py). `thinking`: `auto`
    takes off what stands up to the last end of a thought, and a thought that never ends leaves no
    answer; `opened` says that the prompt opened a thought, so that a completion without its end is
    all thought; `none` takes nothing off. `tag` names the tag around an answer, None for none.
    `which`: the first or the last of several tags, boxes, points, polygons or numbers.
    """

    box_format: str = "llava"
    box_frame: str = "full"
    thinking: Thinking = "auto"
    tag: str | None = ANSWER_TAG
    which: Which = "first"

    @classmethod
    def recorded(cls, settings: Mapping[str, Any]) -> "Reading":
        """How predictions were read, from the settings in their manifest."""
        box_format = settings.get("box_format", cls.box_format)
        frame = settings.get("box_frame", settings.get("frame", cls.box_frame))
        named = {key: settings[key] for key in ("thinking", "tag", "which") if key in settings}
        name = box_format["name"] if isinstance(box_format, Mapping) else box_format
        return cls(name, frame.partition(":")[0], **named)

    def text_settings(self) -> dict[str, Any]:
        """How the text of an answer is found, as a fingerprint records it."""
        return {"thinking": self.thinking, "tag": self.tag, "which": self.which}

    def box_settings(self) -> dict[str, Any]:
        """How boxes are read and written, as a fingerprint records it."""
        return {
            "box_format": describe_box_format(self.box_format),
            "box_frame": self.box_frame,
        }
