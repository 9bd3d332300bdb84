"""benchmarks/browse_speed.py on a few prompts: does it ask for what it says?"""

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import browse_speed

        yield browse_speed


def test_times_and_memory_are_those_of_a_served_run(bench: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    bench.main(["--prompts", "30", "--json", str(file)])
    found = json.loads(file.read_text())
    assert found["prompts"] == 30 and found["samples"] == 20
    assert 0.1 < found["first list, s"] < 120
    assert {"sort, s", "search, s", "disagreement, s", "one prompt, s"} <= set(found)
    assert any(name.endswith(" images, s") for name in found)
    assert 50 < found["peak memory, MiB"] < 1024
