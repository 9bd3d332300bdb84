"""How the exported answers were sampled and read: as recorded, not as the file says today."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.errors import ArtifactError, ConfigError
from perpo_pipeline.status.lineage import Traced
from perpo_pipeline.store.artifacts import Version, input_of
from perpo_pipeline.store.list_prompts import filterings_of_lists
from perpo_pipeline.vlm.chat_settings import ChatSettings, chat_settings, recorded_settings
from perpo_pipeline.vlm.files import is_path


@dataclass(frozen=True)
class Sampled:
    """The models whose answers these are, how they write boxes, and how they were asked.

    `models` are names for a card: of a folder only its name, because cards are published.
    """

    models: tuple[str, ...]
    box_format: str
    box_frame: str
    chat: ChatSettings


def sampled_as(source: Version, lineage: Iterable[Traced], model: ModelConfig) -> Sampled:
    """What the samples and scores behind `source` record, and what `model` says where they do not.

    The scores say how boxes were read, which may be corrected after sampling. Raises ConfigError
    for lists that were sampled with different chats: an export has one.
    """
    _check_one_chat(source)
    lineage = [*lineage]
    samples, scores = (_newest(source, lineage, name) for name in ("samples", "scores"))
    settings = samples[0].manifest["settings"] if samples else {}
    read = scores[0].manifest["settings"] if scores else {}
    return Sampled(
        tuple(dict.fromkeys(_name(one, model.id) for one in samples)) or (_public(model.id),),
        read.get("box_format", model.box_format),
        read.get("box_frame", model.box_frame),
        recorded_settings(settings) if "model" in settings else chat_settings(model),
    )


def _check_one_chat(source: Version) -> None:
    """Raise ConfigError if earlier lists (`filter.earlier`) were sampled with another chat."""
    if source.artifact != "preferences":
        return
    found: dict[ChatSettings, str] = {}
    for filtered, ids in filterings_of_lists(source):
        settings = _settings_of_samples(filtered) if ids else {}
        if "model" in settings:
            lists = f"{len(ids):,} of {filtered.path.resolve()}"
            found.setdefault(recorded_settings(settings), lists)
    if len(found) > 1:
        (one, _), (other, lists) = [*found.items()][:2]
        raise ConfigError(
            f"{lists} among these lists were sampled with {_shown(other, one)}, the others with "
            f"{_shown(one, other)}; an export has one chat for all",
            where=str(source.path),
            fix="export the earlier lists with the file of their own run, or filter without "
            "filter.earlier and filter.keep_earlier",
        )


def _settings_of_samples(preferences: Version) -> Mapping[str, Any]:
    """The settings of the samples of new lists; empty if the samples are gone."""
    try:
        settings: Mapping[str, Any] = input_of(preferences, "samples").manifest["settings"]
    except ArtifactError:
        return {}
    return settings


def _shown(chat: ChatSettings, other: ChatSettings) -> str:
    """The settings of a chat that the other one has not."""
    named = {
        "model.system_prompt": (chat.system_prompt, other.system_prompt),
        "model.chat_template_kwargs": (dict(chat.arguments), dict(other.arguments)),
        "model.template_date": (str(chat.day), str(other.day)),
    }
    return ", ".join(f"{name} {own!r}" for name, (own, its) in named.items() if own != its)


def _newest(source: Version, lineage: Iterable[Traced], artifact: str) -> list[Version]:
    """The versions of an artifact: of the new lists first, then those of earlier ones."""
    found = [one.version for one in lineage if one.artifact == artifact and one.version]
    own = {record["fingerprint"] for record in source.manifest["inputs"].values()}
    return sorted(found, key=lambda version: version.fingerprint not in own)


def _name(samples: Version, configured: str) -> str:
    manifest = samples.manifest
    name = _public(str(manifest["notes"].get("model_id") or configured), manifest["settings"])
    return f"{name} with an adapter" if "adapter" in manifest["inputs"] else name


def _public(name: str, settings: Mapping[str, Any] | None = None) -> str:
    """A model's id on a hub, or the name of its folder, which need not be on this machine."""
    by_files = str((settings or {}).get("model", "")).startswith("sha256:")
    is_folder = by_files or is_path(name) or Path(name).is_dir()
    return (Path(name).name or "a local folder") if is_folder else name
