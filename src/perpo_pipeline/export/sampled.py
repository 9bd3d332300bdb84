"""How the exported answers were sampled and read: as recorded, not as the file says today."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.status.lineage import Traced
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.vlm.chat_settings import ChatSettings, chat_settings, recorded_settings
from perpo_pipeline.vlm.files import is_path
from perpo_pipeline.vlm.sampled_chats import chats_of_lists, shown_beside


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
    found = chats_of_lists(source)
    if len(found) > 1:
        (one, _), (other, lists) = [*found.items()][:2]
        mine, theirs = shown_beside(other, one), shown_beside(one, other)
        raise ConfigError(
            f"{lists} among these lists were sampled with {mine}, the others with {theirs}; an "
            "export has one chat for all",
            where=str(source.path),
            fix="export the earlier lists with the file of their own run, or filter without "
            "filter.earlier and filter.keep_earlier",
        )


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
