"""Lines for people: at most as wide as the terminal, with a mark where something is cut off."""

import shutil
import sys
from collections.abc import Sequence
from typing import TextIO

WIDTH_OF_LOG = 160  # where nobody looks at a terminal


def width_of(stream: TextIO) -> int | None:
    """The columns of the terminal that a stream prints to; None if it is a file or a pipe."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def cut(line: str, width: int) -> str:
    """The line on one line of at most `width` characters, with how many are cut off at its end.

    Line breaks become `\\n`.
    """
    line = line.replace("\r", "\\r").replace("\n", "\\n")
    if len(line) <= width:
        return line
    kept = width - len(f"… (+{len(line):,})")
    kept = max(kept, 0)
    return f"{line[:kept]}… (+{len(line) - kept:,})"


def cut_for_log(line: str) -> str:
    """`cut` for stderr: at the width of its terminal, or else at WIDTH_OF_LOG."""
    return cut(line, width_of(sys.stderr) or WIDTH_OF_LOG)


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells in columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
