"""Training rows of the testbed's pages: one image, the prompt, the text one token a character."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from perpo_pipeline.testbed.pages import (
    LETTERS,
    PAGE_DOMAIN,
    PAGE_PROMPT,
    PUNCTUATION,
    PageExample,
    PagePreset,
    draw_page,
    page_preset,
)
from tools.testbed.model import EOS, IMAGE, PAD, token_id
from tools.testbed.packing import IGNORE, pixels
from tools.testbed.page_errors import Misreading, misread

PAGE_TOKENS = 80  # the longest text of a page and the end token
CHARACTERS = LETTERS + PUNCTUATION
LINES, COLUMNS = 16, 16  # at most so many lines on a page, and characters in a line


@dataclass(frozen=True)
class PageBatch:
    """B pages. pixel_values (B, 3, S, S); ids, labels, rows, columns (B, L); patches (B, P, 4).

    labels[b, t] is the token that follows ids[b, t], or IGNORE; rows and columns name the patch in
    which the centre of that character lies. patches holds for each patch the classes of the up to
    two characters whose centres lie in it (0: none), and where the first stands in the reading
    order: its line and its place in the line, IGNORE without one.
    """

    pixel_values: Tensor
    ids: Tensor
    labels: Tensor
    rows: Tensor
    columns: Tensor
    patches: Tensor


class PageWriter:
    """Turns pages into token ids exactly as the chat template would tokenise them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, image_tokens: int) -> None:
        self.eos_id, self.pad_id = token_id(tokenizer, EOS), token_id(tokenizer, PAD)
        text = f"USER: {IMAGE * image_tokens}\n{PAGE_PROMPT} ASSISTANT: "
        self.prefix_ids: list[int] = tokenizer(text)["input_ids"]
        self.image_start = self.prefix_ids.index(token_id(tokenizer, IMAGE))
        pieces = [*CHARACTERS, *(f" {c}" for c in CHARACTERS), "\n"]
        self._ids = {
            piece: tokenizer(piece, add_special_tokens=False)["input_ids"][0] for piece in pieces
        }

    def answer_ids(self, text: str) -> list[int]:
        """One token a character, a space joined to the character after it, and the end token."""
        spaced = [before == " " for before in f"\n{text}"]
        return [
            *(
                self._ids[f" {c}" if after_space else c]
                for c, after_space in zip(text, spaced, strict=False)
                if c != " "
            ),
            self.eos_id,
        ]


def page_patches(page: PageExample, patch: int) -> NDArray[np.int64]:
    """(patches, 4): two classes of characters, line and place in the line of the first one."""
    grid = page.image.width // patch
    labels = np.zeros((grid, grid, 4), dtype=np.int64)
    labels[..., 2:] = IGNORE
    for number, line in enumerate(page.lines):
        for place, (character, (x, y)) in enumerate(zip(line.text, line.centers_px(), strict=True)):
            if character == " ":
                continue
            cell = labels[int(y / patch), int(x / patch)]
            kind = CHARACTERS.index(character) + 1
            if cell[0] == 0:
                cell[:] = (kind, 0, number, place)
            else:
                cell[1] = kind
    return labels.reshape(grid * grid, 4)


def answer_places(page: PageExample, patch: int) -> NDArray[np.int64]:
    """(tokens of the true text, 2): row and column of each token's patch, IGNORE for the others."""
    places: list[tuple[int, int]] = []
    for line in page.lines:
        for character, (x, y) in zip(line.text, line.centers_px(), strict=True):
            if character != " ":
                places.append((int(y / patch), int(x / patch)))
        places.append((IGNORE, IGNORE))
    return np.array(places)


class PageRows:
    """The pages of a seed as batches; page number `index` depends on nothing else."""

    def __init__(
        self,
        writer: PageWriter,
        *,
        preset: str,
        patch: int,
        seed: int,
        easy: range,
        misreading: Misreading | None,
    ) -> None:
        self._writer, self._patch, self._seed = writer, patch, seed
        self._preset, self._easy = page_preset(preset), easy
        self._misreading = misreading

    def batch(self, indices: range) -> PageBatch:
        """Pages number `indices`; those in `easy` are short and have one column."""
        pages = [self._page(index) for index in indices]
        filled = [self._row(page, index) for page, index in zip(pages, indices, strict=True)]
        ids, labels, rows, columns = (
            torch.from_numpy(np.stack(part)) for part in zip(*filled, strict=True)
        )
        return PageBatch(
            pixel_values=torch.from_numpy(np.stack([pixels(page.image) for page in pages])),
            ids=ids,
            labels=labels,
            rows=rows,
            columns=columns,
            patches=torch.from_numpy(np.stack([page_patches(p, self._patch) for p in pages])),
        )

    def _page(self, index: int) -> PageExample:
        preset = easy_pages(self._preset) if index in self._easy else self._preset
        return draw_page(preset, np.random.default_rng([PAGE_DOMAIN, self._seed, index]))

    def _row(self, page: PageExample, index: int) -> tuple[NDArray[np.int64], ...]:
        ids = np.full(PAGE_TOKENS, self._writer.pad_id, dtype=np.int64)
        labels, rows, columns = (np.full(PAGE_TOKENS, IGNORE, dtype=np.int64) for _ in range(3))
        text = page.text
        if self._misreading is None:
            places = answer_places(page, self._patch)
            rows[: len(places)], columns[: len(places)] = places.T
        else:
            rng = np.random.default_rng([PAGE_DOMAIN + 1, self._seed, index])
            text = misread(page, self._misreading, rng)
        answer = self._writer.answer_ids(text)[:PAGE_TOKENS]
        labels[: len(answer)] = answer
        ids[1 : len(answer)] = answer[:-1]
        ids[0] = self._writer.prefix_ids[-1]
        return ids, labels, rows, columns


def easy_pages(preset: PagePreset) -> PagePreset:
    """Pages of one to three lines in one column."""
    return replace(preset, characters=(6, 48), lines=(1, 3), two_columns_share=0.0)
