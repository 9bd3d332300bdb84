"""What a journal keeps of parts that are not whole, and what it does with a damaged file."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.inference.journal import Journal


def row(prompt_id: str, sample_id: int = 0) -> dict[str, Any]:
    return {"prompt_id": prompt_id, "sample_id": sample_id}


def written(folder: Path, fingerprint: str = "f") -> Path:
    journal = Journal(folder, fingerprint)
    journal.add(3, [row("a", 0), row("a", 1)])
    journal.add(3, [row("b", 0), row("b", 1)])
    journal.flush()
    return folder / "unfinished-00003.jsonl"


def test_what_is_flushed_is_read_again_and_a_line_that_is_cut_off_is_not(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert [r["prompt_id"] for r in Journal(tmp_path, "f").read(3)] == ["a", "a", "b", "b"]
    path.write_bytes(path.read_bytes()[:-5])
    assert [r["prompt_id"] for r in Journal(tmp_path, "f").read(3)] == ["a", "a"]
    journal = Journal(tmp_path, "f")
    journal.add(3, [row("c")])
    journal.flush()
    assert [r["prompt_id"] for r in journal.read(3)] == ["a", "a", "c"]


@pytest.mark.parametrize("line", [b"\x00\x00\xff", b'[{"prompt_id": "a"', b"5", b'[{"x": 1}]', b""])
def test_a_damaged_line_costs_its_own_prompts_only(tmp_path: Path, line: bytes) -> None:
    path = written(tmp_path)
    header, _, second = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([header, line, second]) + b"\n")
    assert [r["prompt_id"] for r in Journal(tmp_path, "f").read(3)] == ["b", "b"]


@pytest.mark.parametrize(
    "header", [b"\xff\xfe", b"", b"[]", json.dumps({"fingerprint": "g"}).encode()]
)
def test_a_file_with_another_header_is_removed(tmp_path: Path, header: bytes) -> None:
    path = written(tmp_path)
    path.write_bytes(header + b"\n" + path.read_bytes().split(b"\n", 1)[1])
    assert Journal(tmp_path, "f").read(3) == []
    assert not path.exists()


def test_rows_that_arrive_after_their_part_is_written_leave_no_file(tmp_path: Path) -> None:
    """A manifest would list the file, and its bytes would depend on which process was faster."""
    journal = Journal(tmp_path, "f")
    journal.drop(3)
    journal.add(3, [row("a")])
    journal.flush()
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_one_error_and_loses_only_what_was_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path)
    journal = Journal(tmp_path, "f")
    journal.add(3, [row("c")])

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ArtifactError, match="the disk is full"):
            journal.flush()
    assert [r["prompt_id"] for r in Journal(tmp_path, "f").read(3)][:4] == ["a", "a", "b", "b"]
