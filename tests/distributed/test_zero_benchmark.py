"""benchmarks/train_zero.py runs, and reports what the training logs say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

pytestmark = pytest.mark.distributed

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "train_zero.py"


def test_the_benchmark_reports_both_ways(tmp_path: Path) -> None:
    ran = subprocess.run(
        [
            sys.executable,
            str(SCRIPT),
            "--preset",
            "cpu",
            "--ways",
            "none",
            "zero3",
            "--steps",
            "5",
            "--batch-size",
            "1",
            "--keep",
            str(tmp_path),
            "--json",
            str(tmp_path / "found.json"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr
    plain, zero3 = json.loads((tmp_path / "found.json").read_text())
    assert [plain["way"], zero3["way"]] == ["none", "zero3"]
    for found in (plain, zero3):
        log = pl.read_parquet(tmp_path / found["way"] / "*" / "part-*.parquet")
        assert log.height == 5 and found["losses"] == log["loss"][3:].to_list()
        assert found["tokens_per_s"] == pytest.approx(log["tokens_per_s"][3:].mean())
        assert found["step_s"] > 0 and found["peak_memory_gib"] is None
    assert plain["losses"] == pytest.approx(zero3["losses"], abs=1e-5)
    assert "| zero3 |" in ran.stdout
