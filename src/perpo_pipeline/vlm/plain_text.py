"""Text of a prompt or an answer stays text, also where it spells a control token.

A tokenizer turns every `<s>` or `<|im_end|>` of a text into that token, whoever wrote it. Here only
those of the chat template and of the processor become tokens. What a user's text spells is marked
with `JOINT`, an invisible character, before the template sees it. Such a marked text is tokenised
by a copy of the tokenizer that knows the control tokens under other names: the template's are
renamed, the user's lose the mark, and nothing else differs. Texts without a mark never reach the
copy, so their tokens are the tokenizer's own.

A token that the tokenizer lists as ordinary (`special: false`, as `<think>` in Qwen3) is a word of
the model, not a control token. So are the marks of a region that models write into their answers,
and the tokens that stand for a place on the image: those without which an answer could not be read
are also kept where a completion's other special tokens are left out (`is_read`).
"""

import copy
import functools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from perpo_pipeline.errors import InputError

JOINT = "\ufdd0"  # a noncharacter: Unicode reserves it for uses inside a program
# MiniCPM-V's numbers have no brackets: without its marks "book" and "120" would become "book120".
READ_MARKS = frozenset({"<ref>", "</ref>", "<box>", "</box>", "<point>", "</point>"})
# Special tokens with which models ask for and write regions: words of questions and answers.
REGION_MARKS = READ_MARKS | frozenset(
    {
        *("<quad>", "</quad>"),
        *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
        *("<|quad_start|>", "<|quad_end|>"),
        *("<|begin_of_box|>", "<|end_of_box|>"),  # GLM-4.xV
        *("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>"),  # DeepSeek-VL2 and OCR
        *("<grounding>", "<phrase>", "</phrase>", "<object>", "</object>"),  # Kosmos-2
    }
)
# PaliGemma's <loc0123>, Florence-2's <loc_123>, Kosmos-2's <patch_index_0123>.
_LOCATION = re.compile(r"<(?:loc[0-9]{4}|loc_[0-9]{1,3}|patch_index_[0-9]{4})>")
NAMED = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
MEDIA = ("image_token", "video_token", "audio_token")


def is_location(token: str) -> bool:
    """Whether a token stands for a place on the image, as `<loc0123>` does."""
    return _LOCATION.fullmatch(token) is not None


def is_read(token: str) -> bool:
    """Whether an answer could not be read without this token."""
    return is_location(token) or token in READ_MARKS


def control_tokens(
    tokenizer: Any, processor: Any, ids: Collection[int], own_marks: str
) -> frozenset[str]:
    """The tokens that only the chat template and the processor may write.

    They are the tokenizer's special tokens except `REGION_MARKS`, locations and those in
    `own_marks`, and in any case its named ones, the placeholders, and the tokens with one of `ids`.
    """
    added = {int(i): token for i, token in tokenizer.added_tokens_decoder.items()}
    always = {added[i].content for i in ids if i in added}
    always |= {str(getattr(tokenizer, name, None)) for name in NAMED}
    always |= {str(getattr(processor, name, None)) for name in MEDIA}
    found = {token.content for token in added.values()}
    words = {token.content for token in added.values() if not token.special} | REGION_MARKS
    words |= {token for token in found if token in own_marks or is_location(token)}
    return frozenset(token for token in found - (words - always) if len(token) > 1)


class PlainTokenizer:
    """Marks the control tokens that a user's text spells, and tokenises marked texts.

    `controls` are the control tokens. The copy of the tokenizer is made at its first use.
    """

    def __init__(self, tokenizer: Any, controls: frozenset[str]) -> None:
        self.original, self.controls = tokenizer, controls
        longest_first = sorted(controls, key=lambda token: (-len(token), token))
        # As the tokenizer does: the leftmost token first, of several the longest.
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def spelled(self, text: str) -> str | None:
        """The first control token that a user's text spells, or None."""
        found = self.pattern.search(text)
        return found[0] if found else None

    def mark(self, text: str) -> str:
        """A user's text with a `JOINT` inside each control token that it spells.

        Raises InputError for a text that holds a `JOINT` already.
        """
        if JOINT in text:
            raise InputError(
                f"the text holds the code point U+FDD0, which is no character: {text[:80]!r}",
                fix="remove it",
            )
        while self.pattern.search(text):  # again, because spellings may overlap
            text = self.pattern.sub(lambda found: found[0][0] + JOINT + found[0][1:], text)
        return text

    def ids(self, marked: str, *, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a marked text.

        Raises InputError if there is a mark and the tokenizer cannot read control tokens as text.
        """
        if JOINT not in marked:
            found = self.original(marked, add_special_tokens=add_special_tokens)["input_ids"]
            return [int(i) for i in found]
        named, end = [], 0
        for token in self.pattern.finditer(marked):
            named += [marked[end : token.start()].replace(JOINT, ""), _renamed(token[0])]
            end = token.end()
        named.append(marked[end:].replace(JOINT, ""))
        encoding = self.copy.encode("".join(named), add_special_tokens=add_special_tokens)
        return [int(i) for i in encoding.ids]

    def processor(self, usual: Any, marked: str) -> Any:
        """The processor that reads a marked text: the usual one unless the text holds a mark."""
        if JOINT not in marked:
            return usual
        processor = copy.copy(usual)
        processor.tokenizer = _TokenizerOfProcessor(self)
        return processor

    @functools.cached_property
    def copy(self) -> Any:
        """The tokenizer with other names for its control tokens; same ids."""
        from tokenizers import Tokenizer

        fast = getattr(self.original, "backend_tokenizer", None)
        if not isinstance(fast, Tokenizer):
            raise self._cannot()
        content = rename_tokens(json.loads(fast.to_str()), self.controls)
        try:
            renamed = Tokenizer.from_str(json.dumps(content))
        except Exception as error:  # the library raises nothing more exact
            raise self._cannot() from error
        renamed.no_truncation()
        renamed.no_padding()
        ids = {token: fast.token_to_id(token) for token in self.controls}
        if any(renamed.token_to_id(_renamed(token)) != number for token, number in ids.items()):
            raise self._cannot()
        return renamed

    def _cannot(self) -> InputError:
        kind = type(self.original).__name__
        return InputError(
            f"the text spells a control token, and the model's tokenizer ({kind}) has no way to "
            "read it as text",
            fix="leave such rows out, or convert the tokenizer to a tokenizer.json",
        )


def rename_tokens(content: Mapping[str, Any], tokens: frozenset[str]) -> dict[str, Any]:
    """A tokenizer.json in which some added tokens have other names, in its vocabulary too."""

    def renamed(token: Any) -> Any:
        return _renamed(token) if token in tokens else token

    model = dict(content["model"])
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, Mapping):
        model["vocab"] = {renamed(token): number for token, number in vocabulary.items()}
    elif vocabulary is not None:  # Unigram: pieces with scores
        model["vocab"] = [[renamed(piece), score] for piece, score in vocabulary]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = renamed(model["unk_token"])
    if "merges" in model:  # none may lead to a control token
        model["merges"] = [m for m in model["merges"] if _merged(m) not in tokens]
    added = [{**token, "content": renamed(token["content"])} for token in content["added_tokens"]]
    return {**content, "model": model, "added_tokens": added}


def _renamed(token: str) -> str:
    return f"{JOINT}{token}{JOINT}"


def _merged(merge: str | Sequence[str]) -> str:
    return "".join(merge.split(" ", 1) if isinstance(merge, str) else merge)


class _TokenizerOfProcessor:
    """The tokenizer as a processor calls it, for marked texts."""

    def __init__(self, plain: PlainTokenizer) -> None:
        self.plain = plain

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain.original, name)

    def __call__(
        self, text: Sequence[str], *, add_special_tokens: bool = True, **kwargs: Any
    ) -> Any:
        from transformers import BatchEncoding

        ids = [self.plain.ids(one, add_special_tokens=add_special_tokens) for one in text]
        inputs = {"input_ids": ids, "attention_mask": [[1] * len(one) for one in ids]}
        return BatchEncoding(inputs, tensor_type=kwargs.get("return_tensors"))
