"""Rows of prompts as an OpenAI-compatible server gets them, and the tokens that training reads."""

import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perpo_pipeline.errors import InputError
from perpo_pipeline.inference.backend import BackendSetup, Row, Size
from perpo_pipeline.inference.prompt_tokens import compare_prompt_tokens
from perpo_pipeline.store.places import name_prompt
from perpo_pipeline.store.prompt_images import box_place
from perpo_pipeline.vlm.chat import check_thinking, find_answer_end
from perpo_pipeline.vlm.chat_rendering import system_message
from perpo_pipeline.vlm.image_place import SYSTEM, Turn, row_turns
from perpo_pipeline.vlm.inputs import (
    IDENTITY_CACHE,
    encode_row,
    faults_of_one_row,
    prompt_images,
)
from perpo_pipeline.vlm.loading import load_without_weights
from perpo_pipeline.vlm.models import Vlm
from perpo_pipeline.vlm.openai_server import Refused, image_message, png_url
from perpo_pipeline.vlm.processors import decode_completions
from perpo_pipeline.vlm.prompts import (
    adds_special_tokens,
    count_prompt_tokens,
    moves_image,
    prepare_image,
    render_prompt,
    resized_size,
)

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class RequestPrompt:
    """A row as it is sent; `num_tokens` includes the images'.

    `messages` are its turns. `has_own_place`: the prompt has several turns, or says where its image
    stands, and the number of tokens alone would not show an image that the server puts elsewhere.
    """

    row: Row
    messages: Sequence[Mapping[str, Any]]
    has_own_place: bool
    adds_special_tokens: bool
    num_tokens: int
    resized: Size | None


class PromptReader:
    """Rows as they are sent and as training reads them; converts between tokens and text."""

    def __init__(self, setup: BackendSetup) -> None:
        vlm = load_without_weights(setup.resolved, identity_cache=setup.scratch / IDENTITY_CACHE)
        check_thinking(vlm, setup.model.answer.thinking)
        system = system_message(vlm)
        self.system = [] if system is None else [system]
        self.weightless, self.preprocess = vlm, str(setup.model_settings["preprocess"])
        self.image_arguments = vlm.image_arguments
        config: Any = vlm.model.config
        self.vocab_size = int(config.get_text_config().vocab_size)
        self.banned = vlm.banned_token_ids
        self.end_ids = vlm.eos_token_ids
        self.lock = threading.Lock()  # fast tokenizers refuse two threads at once

    def read(self, row: Row) -> RequestPrompt:
        """The request's messages for one row; raises RowError if the row cannot be read.

        A system turn of the row stands in place of the run's. An image whose pixels the run limits
        is sent as training resizes it.
        """
        vlm = self.weightless
        with faults_of_one_row(row):
            turns = row_turns(row)
            _check_sendable(vlm, turns)
            images = [prepare_image(vlm, one, self.preprocess) for one in prompt_images(row)]
            text = render_prompt(vlm, turns)
            with self.lock:
                num_tokens = count_prompt_tokens(vlm, text, *(image.size for image in images))
                if num_tokens is None:  # only pixels say it
                    num_tokens = encode_row(vlm, row, self.preprocess).num_tokens
            sizes = [resized_size(vlm, image.size) for image in images]
        if "size" in self.image_arguments:
            resample = vlm.processor.image_processor.resample
            images = [
                image if size is None else image.resize(size, resample)
                for image, size in zip(images, sizes, strict=True)
            ]
        system = [] if turns[0].role == SYSTEM else self.system
        return RequestPrompt(
            row=row,
            messages=[*system, *_messages(turns, images)],
            has_own_place=len(turns) > 1 or any(turns[0].texts[:-1]),
            adds_special_tokens=adds_special_tokens(vlm, text),
            num_tokens=num_tokens,
            resized=sizes[box_place(row)],
        )

    def compare(
        self, row: Row, served: Sequence[int], *, reader: str, where: str, fix: str
    ) -> None:
        """`compare_prompt_tokens` with training's tokens; slow, because it prepares the pixels."""
        with self.lock:
            expected = encode_row(self.weightless, row, self.preprocess).input_ids.tolist()
            compare_prompt_tokens(
                self.weightless,
                served,
                expected,
                reader=reader,
                prompt=name_prompt(row),
                where=where,
                fix=fix,
            )

    def tokenise(self, text: str, *, ends: bool) -> tuple[int, ...]:
        """Ids of a text in which control tokens stay text; `ends` adds the token that ends it.

        Raises Refused for a text that the tokenizer cannot read in this way.
        """
        with self.lock:
            plain = self.weightless.plain
            try:
                ids = plain.ids(plain.mark(text))
            except InputError as error:
                raise Refused(f"the server's answer cannot be tokenised: {error.what}") from None
            return (*ids, self.answer_end_id) if ends else tuple(ids)

    @functools.cached_property
    def answer_end_id(self) -> int:
        """The token that ends an answer; raises InputError where it is unknown."""
        return find_answer_end(self.weightless)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a completion."""
        with self.lock:
            (text,) = decode_completions(self.weightless.tokenizer, [ids])
        return text


def _check_sendable(vlm: Vlm, turns: Sequence[Turn]) -> None:
    """Raise InputError for turns whose texts a server would read as others."""
    found = [token for turn in turns for text in turn.texts if (token := vlm.plain.spelled(text))]
    if found:
        raise InputError(
            f"the prompt spells {found[0]!r}, a control token of the model, and a server reads it "
            "as that token, not as text",
            fix="use the backend transformers or vllm, or remove it from the prompt",
        )
    if any(any(turn.texts[:-1]) for turn in turns) and moves_image(vlm):
        raise InputError(
            "the prompt puts its image after some text, and the chat template of a server puts it "
            "first",
            fix="use the backend transformers or vllm, or put <image> first",
        )


def _messages(turns: Sequence[Turn], images: Sequence["Image"]) -> list[Mapping[str, Any]]:
    """The turns as the OpenAI protocol has them, with their images as data URLs."""
    waiting = iter(images)
    return [
        image_message([png_url(next(waiting)) for _ in range(turn.num_images)], turn.texts)
        if turn.num_images
        else {"role": turn.role, "content": turn.texts[0]}
        for turn in turns
    ]
