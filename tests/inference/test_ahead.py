"""Images are read while the model answers earlier prompts; rows, order and errors stay the same."""

import io
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny_models import noise_image, save_tiny_llava

from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.config.sample import SampleConfig
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.inference import transformers_backend
from perpo_pipeline.inference.ahead import Ahead, reading_threads
from perpo_pipeline.inference.backend import BackendSetup
from perpo_pipeline.inference.part_sampler import PLACE_IN_PART, PartSampler, Row
from perpo_pipeline.inference.transformers_backend import TransformersBackend
from perpo_pipeline.vlm.files import resolve_model

PATIENCE_S = 10.0
BATCH = 2


def make_row(index: int) -> Row:
    file = io.BytesIO()
    noise_image(index, 48 + index, 40).save(file, "PNG")
    data = b"no image" if index == 3 else file.getvalue()
    texts = ["where?", "Where is the red square?", "red", "a b", "which circle </s> is leftmost?"]
    return {
        "prompt_id": f"p{index}",
        "place": f"row {index}",
        "image": {"bytes": data, "path": None},
        "image_sha256": "",
        "prompt": texts[index % len(texts)],
        PLACE_IN_PART: index,
    }


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture
def open_sampler(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], PartSampler]:
    """A sampler of the transformers backend that reads prompts in some number of threads."""

    def make(threads: int) -> PartSampler:
        monkeypatch.setattr(transformers_backend, "reading_threads", lambda device: threads)
        settings = {"backend": "transformers", "num_samples": 3, "max_new_tokens": 6}
        return PartSampler(
            BackendSetup(
                ModelConfig(id=str(model_dir), device="cpu"),
                resolve_model(str(model_dir)),
                {"dtype": "float32", "preprocess": "processor"},
                SampleConfig.model_validate(settings | {"batch_size": BATCH, "temperature": 1.0}),
                tmp_path,
            ),
            run_seed=7,
        )

    return make


def ignore(prompts: Sequence[Row], rows: Sequence[Row]) -> None:
    pass


def _report(reported: list[Row], prompts: Sequence[Row], rows: Sequence[Row]) -> None:
    reported.extend(rows)


def threads_that_read() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("read")]


def test_threads_change_no_row_and_no_error(open_sampler: Callable[[int], PartSampler]) -> None:
    """Nine prompts, the fourth without an image, the fifth of each five with a control token."""
    found = {}
    for threads in (0, 1, 3):
        sampler = open_sampler(threads)
        reported: list[Row] = []
        report = partial(_report, reported)
        rows = sampler.sample([make_row(i) for i in range(9)], report)
        assert reported == rows
        assert bool(threads_that_read()) == bool(threads)
        sampler.close()
        assert threads_that_read() == []
        found[threads] = rows
    assert found[1] == found[0] and found[3] == found[0]
    (failed,) = [row for row in found[0] if "reason" in row]
    assert failed["prompt_id"] == "p3" and "it is not an image" in failed["reason"]
    assert len(found[0]) == 8 * 3 + 1


def test_the_next_calls_images_are_read_while_the_model_draws(
    open_sampler: Callable[[int], PartSampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While call k draws, call k + 1 is read, and nothing further, so memory is bounded."""
    begun: list[str] = []
    changed = threading.Condition()
    encode_row, draw = transformers_backend.encode_row, TransformersBackend._draw

    def encoded(vlm: Any, row: Row, preprocess: str) -> Any:
        with changed:
            begun.append(row["prompt_id"])
            changed.notify_all()
        return encode_row(vlm, row, preprocess)

    def drawn(self: TransformersBackend, *arguments: Any) -> Any:
        expected = min(8, BATCH * (len(seen) + 2))
        with changed:
            assert changed.wait_for(lambda: len(begun) >= expected, PATIENCE_S)
        time.sleep(0.05)  # nothing more may begin
        seen.append(len(begun))
        return draw(self, *arguments)

    seen: list[int] = []
    monkeypatch.setattr(transformers_backend, "encode_row", encoded)
    monkeypatch.setattr(TransformersBackend, "_draw", drawn)
    sampler = open_sampler(2)
    sampler.sample([make_row(10 + i) | {PLACE_IN_PART: i} for i in range(8)], ignore)
    sampler.close()
    assert seen == [4, 6, 8, 8]


def test_a_fault_of_all_prompts_comes_after_the_calls_before_it(
    open_sampler: Callable[[int], PartSampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_row = transformers_backend.encode_row

    def encoded(vlm: Any, row: Row, preprocess: str) -> Any:
        if row["prompt_id"] == "p5":
            raise ConfigError("no row can be read")
        return encode_row(vlm, row, preprocess)

    monkeypatch.setattr(transformers_backend, "encode_row", encoded)
    sampler = open_sampler(3)
    kept: list[str] = []
    with pytest.raises(ConfigError, match="no row can be read"):
        sampler.sample(
            [make_row(i) for i in range(8)],
            ignore,
            lambda rows: kept.extend(row["prompt_id"] for row in rows),
        )
    sampler.close()
    assert sorted(set(kept)) == ["p0", "p1", "p2"]  # p3 has no image
    assert threads_that_read() == []


def test_an_interrupt_gives_up_what_was_expected(
    open_sampler: Callable[[int], PartSampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    sampler = open_sampler(1)
    monkeypatch.setattr(TransformersBackend, "_draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sampler.sample([make_row(i) for i in range(6)], ignore)
    sampler.close()
    assert threads_that_read() == []


def test_one_reader_is_never_used_by_two_threads() -> None:
    used: list[int] = []

    def read(reader: list[int], row: Row) -> int:
        reader.append(1)
        time.sleep(0.01)
        used.append(len(reader))
        reader.pop()
        return int(row["number"])

    ahead: Ahead[list[int], int] = Ahead(read, [[], [], []])
    rows = [{"number": number} for number in range(12)]
    ahead.expect(rows[:6])
    assert ahead.take([rows[0], rows[0], *rows[1:]]) == [0, *range(12)]
    ahead.close()
    assert set(used) == {1}


def test_beside_a_gpu_several_threads_read_and_on_a_cpu_none() -> None:
    assert reading_threads("cpu") == 0
    assert 1 <= reading_threads("cuda") <= 4
