"""Rows of prompts as an OpenAI-compatible server gets them, and the tokens that training reads."""

import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perpo_pipeline.errors import InputError
from perpo_pipeline.inference.backend import BackendSetup, Row, Size
from perpo_pipeline.inference.prompt_tokens import compare_prompt_tokens
from perpo_pipeline.store.places import name_prompt
from perpo_pipeline.vlm.chat import check_thinking, find_answer_end
from perpo_pipeline.vlm.chat_rendering import system_message
from perpo_pipeline.vlm.image_place import split_at_image
from perpo_pipeline.vlm.inputs import (
    IDENTITY_CACHE,
    encode_row,
    faults_of_one_row,
    prompt_image,
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


@dataclass(frozen=True)
class RequestPrompt:
    """A row as it is sent; `num_tokens` includes the image's, None if they are unknown.

    `has_own_place`: the prompt says where its image stands, and the number of tokens alone would
    not show an image that the server puts elsewhere.
    """

    row: Row
    message: Mapping[str, Any]
    has_own_place: bool
    adds_special_tokens: bool
    num_tokens: int | None
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
        """The request's message for one row; raises RowError if the row cannot be read.

        An image whose pixels the run limits is sent as training resizes it.
        """
        vlm = self.weightless
        with faults_of_one_row(row):
            before, after = _texts_to_send(vlm, row["prompt"])
            image = prepare_image(vlm, prompt_image(row), self.preprocess)
            text = render_prompt(vlm, row["prompt"])
            with self.lock:
                num_tokens = count_prompt_tokens(vlm, text, image.size)
            resized = resized_size(vlm, image.size)
        if "size" in self.image_arguments and resized is not None:
            image = image.resize(resized, vlm.processor.image_processor.resample)
        return RequestPrompt(
            row=row,
            message=image_message(png_url(image), after, before),
            has_own_place=bool(before),
            adds_special_tokens=adds_special_tokens(vlm, text),
            num_tokens=num_tokens,
            resized=resized,
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


def _texts_to_send(vlm: Vlm, prompt: str) -> tuple[str, str]:
    """The texts before and after the image; raises InputError if a server would read others."""
    texts = split_at_image(prompt)
    found = [token for text in texts if (token := vlm.plain.spelled(text))]
    if found:
        raise InputError(
            f"the prompt spells {found[0]!r}, a control token of the model, and a server reads it "
            "as that token, not as text",
            fix="use the backend transformers or vllm, or remove it from the prompt",
        )
    if texts[0] and moves_image(vlm):
        raise InputError(
            "the prompt puts its image after some text, and the chat template of a server puts it "
            "first",
            fix="use the backend transformers or vllm, or put <image> first",
        )
    return texts
