"""What a run says about its model's chat template; the same for all stages and backends."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from perpo_pipeline.config.dates import TEMPLATE_DATE

if TYPE_CHECKING:
    from perpo_pipeline.config.model import ModelConfig, TemplateValue


@dataclass(frozen=True)
class ChatSettings:
    """The date that a template writes as today's, the system turn, and the template's arguments.

    With `system_prompt` None there is no system turn, and the template may write its own.
    `arguments` are names with values (`model.chat_template_kwargs`), in the order of their names.
    """

    day: date = TEMPLATE_DATE
    system_prompt: str | None = None
    arguments: "tuple[tuple[str, TemplateValue], ...]" = ()


UNSET = ChatSettings()


def chat_settings(config: "ModelConfig") -> ChatSettings:
    """The settings of a run's section `model` for its chat template."""
    arguments = tuple(sorted(config.chat_template_kwargs.items()))
    return ChatSettings(config.template_date, config.system_prompt, arguments)


def recorded_settings(manifest_settings: Mapping[str, Any]) -> ChatSettings:
    """The settings in the manifest of an artifact, where only those are recorded that count."""
    day = manifest_settings.get("template_date")
    arguments = manifest_settings.get("chat_template_kwargs") or {}
    return ChatSettings(
        TEMPLATE_DATE if day is None else date.fromisoformat(day),
        manifest_settings.get("system_prompt"),
        tuple(sorted(arguments.items())),
    )


def counted_chat_settings(config: "ModelConfig") -> dict[str, Any]:
    """What of it counts in a fingerprint besides the date: only what is set."""
    arguments = dict(chat_settings(config).arguments)
    found = {"system_prompt": config.system_prompt, "chat_template_kwargs": arguments or None}
    return {name: value for name, value in found.items() if value is not None}
