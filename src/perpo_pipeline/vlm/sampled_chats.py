"""With which chats the lists of preferences were sampled: earlier lists may have another one."""

from collections.abc import Mapping
from typing import Any

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.store.artifacts import Version, input_of
from perpo_pipeline.store.list_prompts import filterings_of_lists
from perpo_pipeline.vlm.chat_settings import ChatSettings, recorded_settings


def chats_of_lists(preferences: Version) -> dict[ChatSettings, str]:
    """Each chat that lists were sampled with, and such lists in words; those of today first.

    Lists whose samples are gone are left out.
    """
    found: dict[ChatSettings, str] = {}
    for filtered, ids in filterings_of_lists(preferences):
        chat = _of_samples(filtered) if ids else None
        if chat is not None:
            found.setdefault(chat, f"{len(ids):,} of {filtered.path.resolve()}")
    return found


def sampled_chat(samples: Version) -> ChatSettings | None:
    """The chat of samples; None if they record none, as released ones."""
    settings: Mapping[str, Any] = samples.manifest["settings"]
    return recorded_settings(settings) if "model" in settings else None


def shown_beside(chat: ChatSettings, other: ChatSettings) -> str:
    """The settings of a chat that the other one has not, in words."""
    named = {
        "model.system_prompt": (chat.system_prompt, other.system_prompt),
        "model.chat_template_kwargs": (dict(chat.arguments), dict(other.arguments)),
        "model.template_date": (str(chat.day), str(other.day)),
    }
    return ", ".join(f"{name} {own!r}" for name, (own, its) in named.items() if own != its)


def _of_samples(preferences: Version) -> ChatSettings | None:
    try:
        return sampled_chat(input_of(preferences, "samples"))
    except ArtifactError:
        return None
