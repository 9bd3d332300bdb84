"""What the cards of models and datasets show of the artifacts that they were made from."""

from pathlib import Path
from typing import TYPE_CHECKING

from perpo_pipeline.status.lineage import Traced
from perpo_pipeline.store.artifacts import Json
from perpo_pipeline.templates import markdown_environment

if TYPE_CHECKING:
    import jinja2

PUBLISHED_SETTINGS = (
    "min_pixels",
    "max_pixels",
    "max_tiles",
    "source",
    "split",
    "splits",
    "datasets",
    "num_prompts",
    "per_dataset",
    "backend",
    "num_samples",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "max_new_tokens",
    "seed",
    "reward",
    "strategy",
    "min_margin",
    "max_margin",
    "list_size",
    "drop_unparsed",
    "equal_datasets",
    "max_lists",
    "keep_earlier",
)
"""The settings of earlier artifacts that the card shows; others may name paths on a disk."""


def lineage_row(traced: Traced) -> tuple[str, ...]:
    """Artifact, variant, fingerprint, rows and settings of one artifact, for a card's table."""
    rows, settings = "-", "(removed since)"
    if traced.version is not None:
        rows = f"{traced.version.manifest['rows']:,}"
        settings = published(traced.version.manifest["settings"])
    return traced.artifact, traced.variant, f"`{traced.fingerprint}`", rows, settings


def published(settings: Json) -> str:
    """The settings that may be shown, as one text; empty ones are left out."""
    known = {k: settings[k] for k in PUBLISHED_SETTINGS if settings.get(k) not in (None, [], {})}
    return ", ".join(f"{name} {value}" for name, value in known.items())


def card_environment(folder: Path) -> "jinja2.Environment":
    """Renders the Markdown of a card in a package's folder."""
    environment = markdown_environment(folder)
    environment.filters["cell"] = cell
    return environment


def cell(text: str) -> str:
    """A text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")
