"""The answers of parts that are not whole yet, so that neither Ctrl-C nor a kill loses them.

`unfinished-00003.jsonl` beside the parts has one line per call of the backend (or per prompt, if a
prompt's answer does not depend on the others): SAMPLES rows. A part takes them up when it is
written, and the file is removed. Lines are appended and synced to disk every half minute, and when
the stage ends early. A line that a kill cut off, or that is damaged, does not count: its prompts
are answered again.
"""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perpo_pipeline.inference.part_sampler import Row
from perpo_pipeline.store.atomic import os_errors_explained, sync_directory

FLUSH_S = 30.0


class Journal:
    """Answers of unfinished parts of the version in `directory`, by the part's number."""

    def __init__(self, directory: Path, fingerprint: str) -> None:
        self.directory, self.fingerprint = directory, fingerprint
        self.waiting: dict[int, list[str]] = {}
        self.dropped: set[int] = set()
        self.flushed_at = time.monotonic()

    def read(self, index: int) -> list[Row]:
        """The rows on disk of a part; cuts off a line that is not whole."""
        path = self._path(index)
        if not path.is_file():
            return []
        with os_errors_explained(path):
            data = path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) < len(data):
                os.truncate(path, len(whole))
            header, *lines = whole.split(b"\n")
            if _parse(header) != {"fingerprint": self.fingerprint}:
                path.unlink()
                return []
        found: dict[str, list[Row]] = {}  # a part that Ray tried again may have a prompt twice
        for rows in filter(_are_rows, map(_parse, lines)):
            there = {*found}
            for row in rows:
                if row["prompt_id"] not in there:
                    found.setdefault(row["prompt_id"], []).append(row)
        return [row for rows in found.values() for row in rows]

    def add(self, index: int, rows: Sequence[Row]) -> None:
        """Keep rows of prompts that are answered; the disk gets them within half a minute."""
        if index in self.dropped:
            return  # its part was faster than this message of another process
        self.waiting.setdefault(index, []).append(json.dumps(rows))
        if time.monotonic() - self.flushed_at >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Append what is waiting, and sync it to disk."""
        waiting, self.waiting = self.waiting, {}
        self.flushed_at = time.monotonic()
        for index, lines in waiting.items():
            path = self._path(index)
            with os_errors_explained(path), path.open("a", encoding="utf-8") as file:
                if not file.tell():
                    lines.insert(0, json.dumps({"fingerprint": self.fingerprint}))
                file.write("".join(f"{line}\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())
        if waiting:
            sync_directory(self.directory)

    def drop(self, index: int) -> None:
        """Forget a part, which is written."""
        self.dropped.add(index)
        self.waiting.pop(index, None)
        self._path(index).unlink(missing_ok=True)

    def _path(self, index: int) -> Path:
        return self.directory / f"unfinished-{index:05d}.jsonl"


def _parse(line: bytes) -> Any:
    """The value of a line; None if the line is damaged."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def _are_rows(value: Any) -> bool:
    is_list = isinstance(value, list)
    return is_list and all(isinstance(row, dict) and "prompt_id" in row for row in value)
