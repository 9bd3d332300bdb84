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
from perpo_pipeline.inference import ahead as reading_ahead
from perpo_pipeline.inference import transformers_backend
from perpo_pipeline.inference.ahead import OPENED, OPENERS, Ahead, reads_ahead
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
) -> Callable[[bool], PartSampler]:
    """A sampler of the transformers backend that reads ahead, as beside a GPU, or does not."""

    def make(ahead: bool) -> PartSampler:
        monkeypatch.setattr(transformers_backend, "reads_ahead", lambda device: ahead)
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
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(("read_", "open_"))]


def test_threads_change_no_row_and_no_error(open_sampler: Callable[[bool], PartSampler]) -> None:
    """Nine prompts, the fourth without an image, the fifth of each five with a control token."""
    found = {}
    for ahead in (False, True):
        sampler = open_sampler(ahead)
        reported: list[Row] = []
        report = partial(_report, reported)
        rows = sampler.sample([make_row(i) for i in range(9)], report)
        assert reported == rows
        assert bool(threads_that_read()) == ahead
        sampler.close()
        assert threads_that_read() == []
        found[ahead] = rows
    assert found[True] == found[False]
    (failed,) = [row for row in found[True] if "reason" in row]
    assert failed["prompt_id"] == "p3" and "it is not an image" in failed["reason"]
    assert len(found[True]) == 8 * 3 + 1


def test_the_next_calls_images_are_read_while_the_model_draws(
    open_sampler: Callable[[bool], PartSampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While call k draws, call k + 1 is read, and nothing further, so memory is bounded."""
    begun: list[str] = []
    changed = threading.Condition()
    encode_row, draw = transformers_backend.encode_row, TransformersBackend._draw

    def encoded(vlm: Any, row: Row, preprocess: str, opened: Any) -> Any:
        with changed:
            begun.append(row["prompt_id"])
            changed.notify_all()
        return encode_row(vlm, row, preprocess, opened)

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
    sampler = open_sampler(True)
    sampler.sample([make_row(10 + i) | {PLACE_IN_PART: i} for i in range(8)], ignore)
    sampler.close()
    assert seen == [4, 6, 8, 8]


def test_a_fault_of_all_prompts_comes_after_the_calls_before_it(
    open_sampler: Callable[[bool], PartSampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_row = transformers_backend.encode_row

    def encoded(vlm: Any, row: Row, preprocess: str, opened: Any) -> Any:
        if row["prompt_id"] == "p5":
            raise ConfigError("no row can be read")
        return encode_row(vlm, row, preprocess, opened)

    monkeypatch.setattr(transformers_backend, "encode_row", encoded)
    sampler = open_sampler(True)
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
    open_sampler: Callable[[bool], PartSampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    sampler = open_sampler(True)
    monkeypatch.setattr(TransformersBackend, "_draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sampler.sample([make_row(i) for i in range(6)], ignore)
    sampler.close()
    assert threads_that_read() == []


def test_images_are_opened_in_several_threads_and_read_in_one_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Never more than OPENED images wait to be read; a row that was not expected is read, too."""
    together = threading.Barrier(OPENERS)  # all openers work at once
    lock, waiting, most, read_by = threading.Lock(), [0], [0], set()

    def open_image(row: Row) -> int:
        if row["number"] < OPENERS:
            together.wait(PATIENCE_S)
        with lock:
            waiting[0] += 1
            most[0] = max(most[0], waiting[0])
        return int(row["number"])

    def read(row: Row, opened: Callable[[], Any]) -> int:
        time.sleep(0.005)
        read_by.add(threading.current_thread().name)
        number = int(opened())
        with lock:
            waiting[0] -= 1
        return number

    monkeypatch.setattr(reading_ahead, "prompt_images", open_image)
    ahead = Ahead(read)
    rows = [{"number": number} for number in range(30)]
    ahead.expect(rows[:20])
    assert ahead.take([*rows, rows[29]]) == [*range(30), 29]
    ahead.close()
    assert len(read_by) == 1 and OPENERS < most[0] <= OPENED


def test_what_cannot_be_opened_is_raised_where_the_row_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def open_image(row: Row) -> Any:
        raise ValueError(f"image {row['number']}")

    monkeypatch.setattr(reading_ahead, "prompt_images", open_image)
    ahead = Ahead(lambda row, opened: opened() if row["number"] else 0)
    rows = [{"number": number} for number in range(20)]
    ahead.expect(rows)
    assert ahead.take(rows[:1]) == [0]
    with pytest.raises(ValueError, match="image 1"):
        ahead.take(rows[1:10])
    ahead.close()
    assert threads_that_read() == []


def test_beside_a_gpu_prompts_are_read_ahead_and_on_a_cpu_not() -> None:
    assert reads_ahead("cuda") and not reads_ahead("cpu")
