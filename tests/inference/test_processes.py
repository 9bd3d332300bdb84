"""What is said of a process that ends while it answers."""

from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from perpo_pipeline.config.eval import EvalConfig
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.errors import InputError
from perpo_pipeline.inference import processes
from perpo_pipeline.inference.backend import BackendSetup
from perpo_pipeline.vlm.files import resolve_model


class Dying:
    """A pool whose first process dies."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._processes: dict[int, Any] = {}

    def submit(self, *_: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(BrokenProcessPool())
        return future

    def shutdown(self, **_: Any) -> None:
        pass


def test_the_advice_keeps_what_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another batch_size would be another version, which has no answers yet."""
    monkeypatch.setattr(processes, "ProcessPoolExecutor", Dying)
    model = ModelConfig(id="testbed", device="cpu")
    setup = BackendSetup(model, resolve_model("testbed"), {}, EvalConfig(num_gpus=2), tmp_path)
    given = processes.sample_in_processes(
        setup,
        0,
        {0: pa.table({"prompt_id": ["a"]})},
        2,
        on_progress=lambda *_: None,
        on_kept=lambda *_: None,
        should_stop=lambda: False,
    )
    with pytest.raises(InputError, match="a process that answers prompts ended") as caught:
        next(given)
    fix = str(caught.value.fix)
    assert "lower eval.num_gpus first: fewer processes make the same rows" in fix
    assert "another batch_size is another version" in fix
