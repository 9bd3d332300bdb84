"""Fixtures that many tests share."""

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from perpo_pipeline import advice
from perpo_pipeline.machine import wait_passively

if TYPE_CHECKING:
    from fake_hub import FakeHub

wait_passively()  # before any test imports torch; the commands that tests start inherit it

PROJECT_ROOT = Path(__file__).resolve().parent.parent

SLOWEST_FIRST = ("test_kill.py", "test_make.py", "test_trainer.py")  # minutes: no process ends late


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """No garbage collection visits what the test files import: a million objects, in .7 s."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Several processes take the files in this order."""
    places = {name: place for place, name in enumerate(SLOWEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(autouse=True)
def _forget_the_invocation() -> Iterator[None]:
    """The command line that one test gave in this process is not that of the next test, nor how
    often the command looks for garbage."""
    thresholds = gc.get_threshold()
    yield
    advice.adopt(advice.Invocation())
    gc.set_threshold(*thresholds)


@pytest.fixture(scope="session")
def tiny_qwen3_5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Qwen3.5 (tests/tiny_recurrent.py); no test may change it."""
    from tiny_recurrent import save_tiny_qwen3_5

    return save_tiny_qwen3_5(tmp_path_factory.mktemp("qwen3_5"))


@pytest.fixture(scope="session")
def tiny_gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Gemma 3 (tests/tiny_untried.py); no test may change it."""
    from tiny_untried import save_untried

    return save_untried("gemma3", tmp_path_factory.mktemp("gemma3"))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Chromium without a window; the test is skipped where there is none."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real data with known answers, which is not part of the project.

    PERPO_REALDATA names it where it must be there (CI): then its absence is a failure.
    """
    named = os.environ.get("PERPO_REALDATA")
    folder = Path(named) if named else PROJECT_ROOT.parent / "shared" / "realdata"
    if folder.is_dir():
        return folder
    if named:
        pytest.fail(f"PERPO_REALDATA is {named}, which is not a folder")
    pytest.skip(f"the real-data oracles are absent: no folder {folder}")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["FakeHub"]:
    """A hub on loopback in place of the real one, with a token for it."""
    from fake_hub import TOKEN, FakeHub
    from huggingface_hub import constants

    fake = FakeHub()
    monkeypatch.setattr(constants, "ENDPOINT", fake.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield fake
    fake.stop()
