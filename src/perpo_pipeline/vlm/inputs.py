"""Find and open the configured model; encode rows of prompts, in every stage in the same way."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perpo_pipeline import advice, bars
from perpo_pipeline.answers.formats import BOX_FORMATS, get_box_format
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.errors import ArtifactError, ConfigError, InputError, PerpoError
from perpo_pipeline.store.places import name_image, name_prompt
from perpo_pipeline.store.prompt_images import box_place, images_of, num_images, sizes_of
from perpo_pipeline.vlm.cards import check_cards
from perpo_pipeline.vlm.chat_rendering import idle_settings, writes_date
from perpo_pipeline.vlm.chat_settings import chat_settings, counted_chat_settings
from perpo_pipeline.vlm.files import IDENTITY_CACHE as IDENTITY_CACHE
from perpo_pipeline.vlm.files import (
    ResolvedModel,
    announce_code,
    compute_identity,
    find_on_this_machine,
    find_settings,
    has_weights,
    read_templates,
    resolve_model,
)
from perpo_pipeline.vlm.image_limits import limits_of
from perpo_pipeline.vlm.image_place import row_turns
from perpo_pipeline.vlm.images import load_image
from perpo_pipeline.vlm.quantization import check_installed

STRETCHED = frozenset({"yarn", "linear", "dynamic"})  # rope types with more positions by `factor`

if TYPE_CHECKING:
    from PIL.Image import Image

    from perpo_pipeline.vlm.models import EncodedPrompt, Vlm


class RowError(InputError):
    """One row of the prompts cannot be read; other rows may be fine.

    `where` names the row's place in its dataset and its image; `reason` is one line with the image.
    """

    def __init__(self, what: str, row: Mapping[str, Any], *, fix: str | None = None) -> None:
        self.reason = f"{what} ({name_image(row)})"  # the table of errors has the place
        super().__init__(what, where=f"{name_prompt(row)}, {name_image(row)}", fix=fix)


def _row_fix() -> str:
    return f"replace the image or remove the row, and run: {advice.command('prepare')}"


@contextmanager
def faults_of_one_row(row: Mapping[str, Any], *refusals: type[Exception]) -> Iterator[None]:
    """Turn errors that blame one row of the prompts into RowError; a ConfigError blames all rows.

    Processors raise ValueError, mostly for an image's shape; `refusals` are other exceptions that
    blame the row.
    """
    refused: tuple[type[Exception], ...] = (ValueError, *refusals)
    try:
        yield
    except (ConfigError, RowError):
        raise
    except PerpoError as error:
        raise RowError(error.what, row, fix=error.fix or _row_fix()) from error
    except refused as error:
        raise RowError(str(error) or type(error).__name__, row, fix=_row_fix()) from error


def find_model(
    config: ModelConfig, run_dir: Path, *, computes_here: bool = True
) -> tuple[ResolvedModel, dict[str, Any]]:
    """Find the model's files, and the values of its settings that count in a fingerprint.

    `dtype: auto` is resolved (only this imports torch), since float32 and bfloat16 give different
    results. The date counts only where the chat template writes one; the system prompt, the
    template's arguments, trust in the model's own code, limits on the image's size and quantisation
    only where they are set: the last two are checked before anything large is downloaded.
    MissingDependencyError is raised if bitsandbytes is needed and missing, ConfigError for a limit
    or a quantisation that the model cannot have. Before all of it, this raises as `check_cards`
    does, unless the model does not compute here.
    """
    if computes_here and not _is_here(config):
        check_cards(config)
    check_installed(config.quantization)
    check_image_limits(config)
    _check_quantization(config)
    resolved = _as_configured(
        resolve_model(config.id, config.revision, trust_remote_code=config.trust_remote_code),
        config,
    )
    settings = {
        "model": compute_identity(resolved, run_dir / IDENTITY_CACHE),
        "dtype": config.dtype,
        "preprocess": config.preprocess,
        **resolved.limits.given(),
        **counted_chat_settings(config),
    }
    if config.quantization is not None:
        settings["quantization"] = config.quantization
    if config.trust_remote_code:
        settings["trust_remote_code"] = True
    if writes_date(read_templates(resolved.path)):
        settings["template_date"] = config.template_date.isoformat()
    if config.dtype == "auto":
        import torch

        on_cuda = config.device != "cpu" and torch.cuda.is_available()
        settings["dtype"] = "bfloat16" if on_cuda else "float32"
    return resolved, settings


def _as_configured(resolved: ResolvedModel, config: ModelConfig) -> ResolvedModel:
    """The model with what the run's file says about its prompts, images and weights.

    Warns if code of its own is going to run.
    """
    announce_code(resolved)
    return replace(
        resolved,
        chat=chat_settings(config),
        own_marks=_own_marks(config.box_format),
        limits=limits_of(config),
        quantization=config.quantization,
    )


def find_model_here(config: ModelConfig) -> ResolvedModel | None:
    """As `find_model`, but downloads nothing and needs no weights; None if it is not here."""
    found = _on_this_machine(config)
    return None if found is None else _as_configured(found, config)


def check_image_limits(config: ModelConfig, *, download: bool = True) -> None:
    """Raise ConfigError for a limit that the model's family does not have or cannot keep.

    Does nothing without limits. Where the model is not here, its files without the weights are
    downloaded, or with `download` false nothing is checked.
    """
    limits = limits_of(config)
    if not limits.given():
        return
    found = _settings(config, download=download)
    if found is not None:
        from perpo_pipeline.vlm.load_errors import load_errors_explained
        from perpo_pipeline.vlm.processors import arguments_from_files

        announce_code(found)
        with load_errors_explained(found):
            arguments_from_files(found.path, limits, own_code=found.own_code)


def _settings(config: ModelConfig, *, download: bool = True) -> ResolvedModel | None:
    return find_settings(
        config.id,
        config.revision,
        download=download,
        trust_remote_code=config.trust_remote_code,
    )


def _check_quantization(config: ModelConfig) -> None:
    """Raise for a model that cannot be quantised, before its weights are downloaded.

    A model that is here is checked when it is loaded.
    """
    if config.quantization is None or _is_here(config):
        return
    found = _settings(config)
    if found is not None:
        from perpo_pipeline.vlm.loading import check_quantisable

        announce_code(found)
        check_quantisable(replace(found, quantization=config.quantization))


def _on_this_machine(config: ModelConfig) -> ResolvedModel | None:
    trusts = config.trust_remote_code
    return find_on_this_machine(config.id, config.revision, trust_remote_code=trusts)


def _is_here(config: ModelConfig) -> bool:
    found = _on_this_machine(config)
    return found is not None and has_weights(found)


def _own_marks(box_format: str) -> str:
    """The text of a user's own box format, whose special tokens are words of the answers."""
    if box_format in BOX_FORMATS:
        return ""
    own = get_box_format(box_format)
    return own.template + own.around + own.separator + own.instruction


def model_notes(config: ModelConfig) -> dict[str, Any]:
    """What a manifest records as notes: where the model came from, how its boxes are read."""
    return {
        "model_id": config.id,
        "revision": config.revision,
        "device": config.device,
        "box_format": config.box_format,
        "box_frame": config.box_frame,
    }


def open_model(
    config: ModelConfig,
    resolved: ResolvedModel,
    settings: Mapping[str, Any],
    run_dir: Path,
    adapter: Path | None = None,
) -> "Vlm":
    """Load the model that `find_model` found; raises first as `check_cards` does.

    Prints what the run says about the chat template without effect (`idle_settings`).
    """
    check_cards(config)
    from transformers.utils import logging

    from perpo_pipeline.vlm.loading import load_vlm

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    vlm = load_vlm(
        resolved,
        dtype=settings["dtype"],
        device=config.device,
        adapter=adapter,
        identity_cache=run_dir / IDENTITY_CACHE,
    )
    if os.environ.get("RANK", "0") == "0":  # of the processes of a training, the first
        for line in idle_settings(vlm):
            bars.write(f"warning: {line}")
    return vlm


def prompt_images(row: Mapping[str, Any]) -> "list[Image]":
    """The RGB images of a row of the prompts, in their order.

    Raises ArtifactError if the file of one has changed.
    """
    return [_open(row, one, at) for at, one in enumerate(images_of(row))]


def prompt_image(row: Mapping[str, Any]) -> "Image":
    """The RGB image of a row that boxes refer to; raises ArtifactError if its file has changed."""
    place = box_place(row)
    return _open(row, images_of(row)[place], place)


def _open(row: Mapping[str, Any], image: Mapping[str, Any], at: int) -> "Image":
    data, path = image["bytes"], image["path"]
    where = f"{name_prompt(row)}, {name_image(row, at)}"
    if data is not None:
        return load_image(data, where=where)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"the image cannot be read: {error.strerror}",
            where=where,
            fix=f"put it back, or set embed_images: true and run: {advice.command('prepare')}",
        ) from error
    if hashlib.sha256(data).hexdigest() != image["sha256"]:
        raise ArtifactError(
            "the image has changed since `perpo prepare`",
            where=where,
            fix=f"run: {advice.command('prepare')}",
        )
    return load_image(data, where=where)


def encode_row(
    vlm: "Vlm",
    row: Mapping[str, Any],
    preprocess: str,
    opened: "Callable[[], list[Image]] | None" = None,
) -> "EncodedPrompt":
    """Encode the images and turns of one row of the prompts; raises RowError if impossible.

    `opened` returns the row's images, where another thread opens them.
    """
    from perpo_pipeline.vlm.prompts import encode_prompt

    with faults_of_one_row(row):
        images = prompt_images(row) if opened is None else opened()
        return encode_prompt(
            vlm, images, row_turns(row), preprocess=preprocess, box_image=box_place(row)
        )


def seen_sizes(row: Mapping[str, Any], preprocess: str) -> list[tuple[int, int]]:
    """(width, height) of a row's images as the processor gets them."""
    sizes = sizes_of(row)
    return [(max(size), max(size)) for size in sizes] if preprocess == "pad" else sizes


def count_row_parts(vlm: "Vlm", row: Mapping[str, Any], preprocess: str) -> tuple[int, int]:
    """Tokens of the images and of the text of an encoded row.

    Reads pixels only if the family's rule needs them.
    """
    from perpo_pipeline.vlm.prompts import count_image_tokens, render_prompt, rendered_ids

    with faults_of_one_row(row):
        rendered = render_prompt(vlm, row_turns(row))
        text = len(rendered_ids(vlm, rendered)) - num_images(row)
        image = count_image_tokens(vlm, *seen_sizes(row, preprocess))
    if image is None:
        image = encode_row(vlm, row, preprocess).num_tokens - text
    return image, text


def count_row_tokens(vlm: "Vlm", row: Mapping[str, Any], preprocess: str) -> int:
    """The number of tokens of an encoded row: `count_row_parts` together."""
    return sum(count_row_parts(vlm, row, preprocess))


def context_length(vlm: "Vlm") -> int | None:
    """The most tokens that the language model was made for; None if its config has no limit.

    Positions that its config stretches (YaRN, linear, dynamic) count as vLLM counts them.
    """
    whole: Any = vlm.model.config
    config = whole.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None:
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") not in STRETCHED or not rope.get("factor"):
        return int(limit)
    before = rope.get("original_max_position_embeddings") or limit
    return max(int(limit), int(before * rope["factor"]))
