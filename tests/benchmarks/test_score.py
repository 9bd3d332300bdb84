"""benchmarks/score.py on a few rows: does it time what it says?"""

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import score

        yield score


def test_rows_hold_rates_and_peaks(bench: ModuleType, tmp_path: Path):
    cases = ["grounding", "ocr", "ocr-short"]
    file = tmp_path / "found.json"
    bench.main(["--case", *cases, "--rows", "40", "--repeats", "2", "--json", str(file)])
    found = json.loads(file.read_text(encoding="utf-8"))
    assert [row["name"] for row in found["rows"]] == cases
    for row in found["rows"]:
        assert row["rows"] == 40
        low, high = row["rows_per_s_range"]
        assert 0 < low <= row["rows_per_s"] <= high
        low, high = row["peer_rows_per_s_range"]
        assert 0 < low <= row["peer_rows_per_s"] <= high
        assert 0.02 < row["peak_gib"] < 2
    assert found["header"]["repeats"] == 2


def test_the_answers_include_every_kind(bench: ModuleType):
    (texts, sizes, gt), (as_list, *_) = bench.make_grounding(2000)
    assert texts.to_pylist() == as_list
    unparsed = [text for text in as_list if "[" not in text]
    twice = [text for text in as_list if text.count("[") == 2]
    rewards = bench.score_grounding(texts, sizes, gt)
    assert 20 <= len(unparsed) <= 60 and 20 <= len(twice) <= 60
    assert (rewards > 0.5).mean() > 0.5
    assert rewards[[as_list.index(text) for text in unparsed]].sum() == 0


def test_the_pages_have_the_stated_lengths_and_are_read_with_errors(bench: ModuleType):
    (predictions, truths), _ = bench.CASES["ocr"].make(60)
    assert all(1000 <= len(truth) <= 2000 for truth in truths)
    similarities = bench.score_ocr(predictions, truths)
    assert similarities.min() < 0.75 and 0.95 < similarities.max() < 1
    assert max(map(len, bench.CASES["ocr-short"].make(60)[0][1])) <= 40


@pytest.mark.parametrize("found", [np.array([0.5, 0.6]), np.array([0.5])])
def test_different_rewards_of_the_peer_end_the_run(bench: ModuleType, found):
    with pytest.raises(SystemExit, match="ocr: ours and the peer's rewards differ"):
        bench.compare("ocr", np.array([0.5, 0.5]), found)


def test_the_stream_is_taken_from_its_own_script(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    module = types.ModuleType("score_stream")
    module.ROWS = 10_000_000
    row = {"name": "stream", "rows_per_s": 2.0, "peer_rows_per_s": None, "peak_gib": 1.0}
    module.measure_stream = lambda rows: row | {"rows": rows}
    monkeypatch.setitem(sys.modules, "score_stream", module)
    file = tmp_path / "found.json"
    bench.main(["--case", "stream", "--json", str(file)])
    assert json.loads(file.read_text(encoding="utf-8"))["rows"] == [row | {"rows": 10_000_000}]
    assert bench.stream(20)["rows"] == 20
