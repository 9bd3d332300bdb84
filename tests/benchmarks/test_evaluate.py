"""benchmarks/evaluate.py on a model of a few thousand weights: does it time what it says?"""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The benchmark's modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        patch.setenv("HF_HUB_OFFLINE", "1")  # which the script sets
        import evaluate
        import train_step_models

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # steps this small only wait for the others
        yield SimpleNamespace(script=evaluate, models=train_step_models)
        torch.set_num_threads(threads)


def tiny_case(bench: SimpleNamespace, per_image: int = 1):
    """Five prompts in batches of two; images of 4 tokens, answers of 6."""
    shape = bench.models.Shape("llava", 64, 96, 2, 4, 2, 300, (32, 64, 2, 2), 28, rank=4)
    return bench.script.Case(shape, 5, 2, 6, per_image)


def test_all_ways_give_the_same_answers(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.script, "CASES", {"tiny": tiny_case(bench)})
    file = tmp_path / "found.json"
    bench.script.main(["--case", "tiny", "--repeats", "2", "--json", str(file)])
    found = json.loads(file.read_text(encoding="utf-8"))
    rows = {row["way"]: row for row in found["rows"]}
    assert list(rows) == ["generate", "generate-one", "backend"]
    assert [row["different"] for row in rows.values()] == [0, 0, 0]
    for row in rows.values():
        assert row["tokens_per_s"] == pytest.approx(6 * 1e3 / row["ms_per_prompt"])
        assert row["prefix_tokens"] == 4 + 18 + 4
    best = min(rows[way]["ms_per_prompt"] for way in ("generate", "generate-one"))
    assert all(row["cpu_ms_per_prompt"] > 0 for row in rows.values())
    assert rows["backend"]["faster"] == pytest.approx(best / rows["backend"]["ms_per_prompt"])
    assert found["header"]["cases"]["tiny"]["batch_size"] == 2


def test_an_answer_that_differs_is_counted(
    bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = bench.script.Library.answer

    def other(*args, **kwargs):
        answers = honest(*args, **kwargs)
        return [[9, *answers[0][1:]], *answers[1:]]

    monkeypatch.setattr(bench.script.Library, "answer", other)
    rows = bench.script.time_case("tiny", tiny_case(bench), "transformers", 1)
    assert [row["different"] for row in rows] == [1, 1, 0]


def test_prompts_share_an_image_as_the_case_says(bench: SimpleNamespace) -> None:
    rows = bench.script.make_prompts(tiny_case(bench, per_image=2))
    images = [row["image_sha256"] for row in rows]
    assert images[0] == images[1] != images[2] == images[3] != images[4]
    assert len({row["prompt"] for row in rows}) == 5
