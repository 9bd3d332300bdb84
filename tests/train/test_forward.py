"""Every process of a run trains with the same forward, and gives the same reason for it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from perpo_pipeline.config.train import TrainSettings
from perpo_pipeline.train import forward, self_check
from perpo_pipeline.train.forward import agreed, prove_forward
from perpo_pipeline.train.processes import World
from perpo_pipeline.vlm.models import Way

SHARED, OTHER = Way(True, "exact; 0.01 nats"), Way(True, "exact; 0.02 nats")
REFUSED, AGAIN = Way(False, "not exact; 3 nats"), Way(False, "not exact; 4 nats")


@dataclass
class Meeting:
    """Where the threads that stand for processes hand over values."""

    size: int
    barrier: threading.Barrier = field(init=False)
    values: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.size, timeout=20)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait()
        found = [self.values[r] for r in range(self.size)]
        self.barrier.wait()  # nobody hands over the next value before all have read
        return found


@dataclass(frozen=True)
class ThreadWorld(World):
    """`gather` and `broadcast` give what torch's give, between threads."""

    meeting: Any = None

    def gather(self, value: Any) -> list[Any]:
        found: list[Any] = self.meeting.exchange(self.rank, value)
        return found if self.is_first else []

    def broadcast(self, value: Any) -> Any:
        return self.meeting.exchange(self.rank, value)[0]


def in_every_process(size: int, work: Any) -> list[Any]:
    meeting = Meeting(size)
    worlds = [ThreadWorld(rank=rank, size=size, meeting=meeting) for rank in range(size)]
    with ThreadPoolExecutor(size) as threads:
        return [one.result() for one in [threads.submit(work, world) for world in worlds]]


@pytest.mark.parametrize(
    ("ways", "expected"),
    [
        ([SHARED, OTHER], SHARED),
        ([SHARED, REFUSED], REFUSED),
        ([REFUSED, SHARED], REFUSED),
        ([SHARED, REFUSED, AGAIN], REFUSED),
        ([AGAIN, REFUSED, SHARED], AGAIN),
    ],
)
def test_a_prefix_is_shared_only_if_every_process_found_it_exact(
    ways: list[Way], expected: Way
) -> None:
    found = in_every_process(len(ways), lambda world: agreed(world, ways[world.rank]))
    assert found == [expected] * len(ways)
    assert agreed(World(), ways[0]) == ways[0]


@pytest.mark.parametrize("fails", ["nowhere", "when asked", "on a list"])
@pytest.mark.parametrize("tested", [True, False])
def test_processes_whose_proofs_differ_train_with_one_forward_and_one_reason(
    monkeypatch: pytest.MonkeyPatch, fails: str, tested: bool
) -> None:
    """The second process finds something else; a tested family is not proven on a list."""
    monkeypatch.setattr(forward, "encode_row", lambda *given: "prompt")
    monkeypatch.setattr(self_check, "prove_training", lambda vlm, *given, **how: vlm.on_list)
    settings = TrainSettings()
    task = cast(Any, SimpleNamespace(settings=settings, model_settings={"preprocess": "none"}))
    entry = cast(Any, SimpleNamespace(prompt={}, completions=[]))
    said: dict[int, list[str]] = {0: [], 1: []}

    def work(world: World) -> tuple[str, str]:
        second = world.rank == 1
        vlm = SimpleNamespace(
            is_tested=tested,
            family=SimpleNamespace(name="some"),
            way=REFUSED if second and fails == "when asked" else SHARED,
            on_list=AGAIN if second and fails == "on a list" else OTHER,
        )
        run = SimpleNamespace(say=said[world.rank].append)
        return prove_forward(cast(Any, run), cast(Any, vlm), task, entry, world)

    expected = ("shared-prefix", SHARED.why if tested else OTHER.why)
    if fails == "when asked":
        expected = ("separate", REFUSED.why)
    elif fails == "on a list" and not tested:
        expected = ("separate", AGAIN.why)
    assert in_every_process(2, work) == [expected, expected]
    assert said[0] == said[1]
    assert ("which is slow: " in " ".join(said[0])) is (expected[0] == "separate")
