"""How one model would be sampled and trained: `perpo doctor --model ID`."""

import json
import tempfile
import warnings
from pathlib import Path

import torch
from PIL import Image
from transformers.utils import logging

from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.errors import ConfigError, InputError, first_line
from perpo_pipeline.machine import memory_bytes
from perpo_pipeline.store.atomic import write_atomically
from perpo_pipeline.train.scope import attach_lora, numbers_of
from perpo_pipeline.vlm.cards import visible_cards
from perpo_pipeline.vlm.chat import find_answer_end, find_thought_end, opens_thought
from perpo_pipeline.vlm.chat_rendering import refusals, template_text
from perpo_pipeline.vlm.families import Family
from perpo_pipeline.vlm.files import ResolvedModel
from perpo_pipeline.vlm.inputs import IDENTITY_CACHE, find_model
from perpo_pipeline.vlm.loading import load_vlm, load_without_weights
from perpo_pipeline.vlm.models import Vlm, Way, base_model
from perpo_pipeline.vlm.own_code import code_files
from perpo_pipeline.vlm.prompts import encode_prompt, render_prompt
from perpo_pipeline.vlm.quantization import model_bytes
from perpo_pipeline.vlm.refusals import REFUSALS

SIZE = (640, 480)  # of the example image, width and height
QUESTION = "Where is the dog?"
OUT_OF_MEMORY = "allocate memory"  # in torch's message where the machine's memory ends
SHARED = {True: "read once for all its answers", False: "read once for each answer"}


def examine_model(config: ModelConfig) -> dict[str, str]:
    """Load a model as a run with these settings would, and say what such a run would do.

    Returns lines of text by their names; no artifact is written. Weights for which there is not
    enough memory are left out, and only the proof of the shared prefix is then missing. Raises as
    `find_model` and `load_vlm` do for a model that cannot be used.
    """
    cache = Path(tempfile.gettempdir())
    resolved, settings = find_model(config, cache)
    empty = load_without_weights(resolved, identity_cache=cache / IDENTITY_CACHE)
    size = model_bytes(base_model(empty.model), config.quantization, settings["dtype"])
    format_ = ", computed in ".join(filter(None, (config.quantization, settings["dtype"])))
    weights = f"{size / 1e9:,.3g} GB in {format_}"
    try:
        _check_memory(config, size)
        way = _proven_way(config, resolved, cache / IDENTITY_CACHE)
    except (MemoryError, RuntimeError, InputError) as error:
        if not _is_memory(error):
            raise
        way, weights = None, f"{weights}, not enough memory: {first_line(error)}"
    family = empty.family
    boxes = f"{family.box_format}, frame {family.box_frame}"
    return {
        "model": config.id,
        "weights": weights,
        **({"code": _code(resolved)} if resolved.own_code else {}),
        "family": f"{family.name}, {_tests_of(family)}",
        "text layers": str(empty.layers),
        "a prompt is": _shared(way, empty),
        "positions": f"{empty.position_axes} axes" if empty.position_axes > 1 else "1 axis",
        "boxes": boxes if family.box_format else "set model.box_format and model.box_frame",
        "tokens": _tokens(empty),
        "image": _image(empty),
        "chat template": _template(empty),
        "thinking": _thinking(empty),
        "vllm": "applies an adapter of the language model as it is"
        if family.lora_in_vllm
        else "an adapter is merged first",
        "adapter": _adapter(empty),  # last: it changes the model
    }


def as_text(lines: dict[str, str]) -> str:
    """What `examine_model` found, as aligned lines."""
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines.items())


def write_json(file: Path, lines: dict[str, str]) -> None:
    """Write what `examine_model` found as one JSON object."""
    text = json.dumps(lines, indent=2, ensure_ascii=False) + "\n"
    write_atomically(file, lambda sink: sink.write(text.encode()))


def _check_memory(config: ModelConfig, size: int) -> None:
    """Raise MemoryError if weights of `size` bytes cannot fit on the device."""
    cards = visible_cards() if config.device != "cpu" else []
    has, name = (cards[0].memory, str(cards[0])) if cards else (memory_bytes(), "this machine")
    if size > has:
        raise MemoryError(f"{name} has {has / 1e9:,.1f} GB")


def _proven_way(config: ModelConfig, resolved: ResolvedModel, cache: Path) -> Way:
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return load_vlm(resolved, dtype=config.dtype, device=config.device, identity_cache=cache).way


def _is_memory(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that the memory ran out."""
    while error is not None:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or OUT_OF_MEMORY in str(error):
            return True
        error = error.__cause__
    return False


def _shared(way: Way | None, empty: Vlm) -> str:
    """How prompts are read; `way` is None where the weights did not fit."""
    if way is None and not empty.is_tested and empty.why_never is None:
        return "not proven (not enough memory); a run proves it when it starts"
    way = way or empty.way
    return f"{SHARED[way.shares_prefix]}: {way.why}"


def _code(resolved: ResolvedModel) -> str:
    files = ", ".join(code_files(resolved.path))
    return f"of its own, which runs (model.trust_remote_code): {files}"


def _tests_of(family: Family) -> str:
    if family.known and not family.own_processor:
        return "tested with images that were prepared without its own processor"
    return "tested" if family.is_tested else "not among the tested"


def _tokens(vlm: Vlm) -> str:
    ends, images = (
        ", ".join(_token(vlm, i) for i in ids) or "none"
        for ids in (vlm.eos_token_ids, vlm.image_token_ids)
    )
    own = "" if vlm.tokenizer.pad_token_id is not None else " (the tokenizer has none)"
    padding = f"{_token(vlm, vlm.pad_token_id)}{own}"
    return f"end {ends}; image and video {images}; padding {padding}"


def _token(vlm: Vlm, token_id: int) -> str:
    return f"{vlm.tokenizer.convert_ids_to_tokens(token_id)} {token_id}"


def _image(vlm: Vlm) -> str:
    """The tokens of an example image, and of the prompt around it."""
    width, height = SIZE
    try:
        encoded = encode_prompt(vlm, Image.new("RGB", SIZE), QUESTION)
    except REFUSALS as error:
        return f"{width} x {height} cannot be encoded ({first_line(error)})"
    images = torch.isin(encoded.input_ids, torch.tensor(vlm.image_token_ids))
    return (
        f"{width} x {height} takes {int(images.sum()):,} tokens, with the example question "
        f"{encoded.num_tokens:,}"
    )


def _template(vlm: Vlm) -> str:
    """What the chat template writes for the example question, in one line."""
    if not template_text(vlm.processor.chat_template):
        return "none: no prompt can be written without one (chat_template.jinja)"
    faults: tuple[type[Exception], ...] = (*refusals(), InputError)
    try:
        return json.dumps(render_prompt(vlm, QUESTION), ensure_ascii=False)
    except faults as error:
        return f"refuses an image with a question: {first_line(error)}"


def _thinking(vlm: Vlm) -> str:
    """Whether the template opens a thought, and with which token an answer ends."""
    try:
        thought = "not opened by the chat template"
        if opens_thought(vlm):
            closed = json.dumps(find_thought_end(vlm), ensure_ascii=False)
            thought = (
                f"the chat template opens a thought, closed by {closed}: set "
                "model.answer.thinking to opened"
            )
        return f"{thought}; an answer ends with {_token(vlm, find_answer_end(vlm))}"
    except InputError as error:
        return error.what


def _adapter(vlm: Vlm) -> str:
    """What PEFT really puts LoRA on, counted on the model, which it changes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, of patterns of its own
            _, found = attach_lora(vlm, rank=1, alpha=1)
    except ConfigError as error:
        return f"no LoRA: {error.what}; {error.fix}"
    text = f"LoRA on {found.layers.total()} linear layers ({numbers_of(found.layers)})"
    if found.experts:
        text += f" and on {found.experts.total()} weights of experts ({numbers_of(found.experts)})"
    if found.missed:
        text += f"; none on {found.missed.total()} in its scope ({numbers_of(found.missed)})"
    if found.unknown:
        text += f"; none on {found.unknown.total()} of unknown names ({numbers_of(found.unknown)})"
    return text
