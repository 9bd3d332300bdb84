"""`train.log_to`: known names, missing packages, and logs that stay in the run's folder."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.integrations import integration_utils

from perpo_pipeline.cli import main
from perpo_pipeline.config.integrations import INTEGRATIONS, check_names
from perpo_pipeline.errors import ConfigError, MissingDependencyError
from perpo_pipeline.store.artifacts import damaged_files, open_version
from perpo_pipeline.train import integrations
from perpo_pipeline.train.integrations import (
    check_installed,
    keep_loose_files,
    logging_under,
    reporting_callbacks,
)

CONFIG = """
run: r
model: {id: testbed, dtype: float32, device: cpu}
prepare:
  train: {source: testbed, num_prompts: 8}
  test: {source: testbed, num_prompts: 4}
sample: {num_samples: 4, temperature: 1.0, max_new_tokens: 24, batch_size: 4}
filter: {min_margin: 0.01}
train:
  batch_size: 4
  learning_rate: 1.0e-3
  lora: {rank: 2, alpha: 4}
  methods: {perpo: {beta: 1.0}, lipo: {beta: 1.0}}
"""


def perpo(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--config", "r.yaml", "--quiet"])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run up to its preferences."""
    folder, before = tmp_path_factory.mktemp("run"), Path.cwd()
    os.chdir(folder)
    try:
        Path("r.yaml").write_text(CONFIG)
        for stage in ("prepare", "sample", "score", "filter"):
            assert perpo(stage) == 0
        yield folder
    finally:
        os.chdir(before)


def files_under(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_the_names_are_those_of_transformers() -> None:
    assert INTEGRATIONS.keys() == integration_utils.INTEGRATION_TO_CALLBACK.keys()


def test_tensorboard_has_every_step_and_only_in_the_runs_folder(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(prepared / "elsewhere"))
    before = files_under(prepared)
    assert perpo("train", "--set", "train.log_to=[tensorboard]") == 0
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(prepared / "elsewhere")
    new = files_under(prepared) - before
    assert all(path.is_relative_to(prepared / "data/r") for path in new)
    events = {path for path in new if "tfevents" in path.name}
    assert {path.relative_to(prepared).parts[3] for path in events} == {"perpo", "lipo"}
    for variant in ("perpo", "lipo"):
        version = open_version(prepared / "data/r/adapter" / variant)
        assert damaged_files(version) == []
        logged = EventAccumulator(str(version.path / "logs/tensorboard"))
        logged.Reload()
        for name, column in (("train/loss", "loss"), ("train/reward_accuracy", "reward_accuracy")):
            scalars = [(event.step, event.value) for event in logged.Scalars(name)]
            expected = version.table(columns=["step", column]).to_pylist()
            assert scalars == [(row["step"], pytest.approx(row[column])) for row in expected]
            assert len(scalars) == 2


def test_an_unknown_name_is_refused_with_the_known_ones(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert perpo("train", "--set", "train.log_to=[tensorbored]") == 2
    message = capsys.readouterr().err
    assert (
        "train.log_to (--set train.log_to=[tensorbored]): there is no integration 'tensorbored'"
        in message
    )
    assert all(name in message for name in integration_utils.INTEGRATION_TO_CALLBACK)
    for name in ("all", "none"):  # transformers' own words; a list says it better
        with pytest.raises(ValueError, match=f"no integration '{name}'"):
            check_names([name])


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("tensorboard", "pip install -c constraints.txt -e '.[tensorboard]'"),
        ("wandb", "pip install -c constraints.txt wandb"),
        ("comet_ml", "pip install -c constraints.txt comet-ml"),
    ],
)
def test_a_missing_package_is_named_with_its_command(
    name: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrations.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(MissingDependencyError) as caught:
        check_installed([name])
    assert command in str(caught.value)


def test_a_missing_package_ends_the_command_before_any_model_is_loaded(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from perpo_pipeline.train import train_adapter as stage

    monkeypatch.setattr(integrations.importlib.util, "find_spec", lambda module: None)
    monkeypatch.setattr(stage, "open_model", None)
    code = perpo(
        "train",
        "--method",
        "perpo",
        "--set",
        "train.learning_rate=2e-3",
        "--set",
        "train.log_to=[wandb]",
    )
    assert code == 2
    assert "pip install -c constraints.txt wandb" in capsys.readouterr().err


def test_every_folder_is_inside_and_servers_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.lab:5000")
    monkeypatch.setenv("WANDB_DIR", "/somewhere")
    before = dict(os.environ)
    with logging_under(list(INTEGRATIONS), tmp_path / "logs"):
        changed = {k: v for k, v in os.environ.items() if before.get(k) != v}
        assert changed["WANDB_DIR"] == str(tmp_path / "logs/wandb")
        assert (tmp_path / "logs/wandb").is_dir()
        assert changed["TENSORBOARD_LOGGING_DIR"] == str(tmp_path / "logs/tensorboard")
        assert "MLFLOW_TRACKING_URI" not in changed
        assert changed.pop("MLFLOW_ALLOW_FILE_STORE") == "true"
        assert all(str(tmp_path / "logs") in value for value in changed.values())
    assert dict(os.environ) == before
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with logging_under(["mlflow"], tmp_path / "logs"):
        assert os.environ["MLFLOW_TRACKING_URI"] == f"file://{tmp_path}/logs/mlflow/runs"


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_that_was_left_open_is_closed_with_the_training(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[object] = []
    wandb: Any = ModuleType("wandb")
    wandb.run = object()
    wandb.finish = lambda **settings: ended.append(settings)
    wandb.teardown = lambda: ended.append("service")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    if fails:
        with pytest.raises(KeyboardInterrupt), logging_under(["wandb"], tmp_path):
            raise KeyboardInterrupt
    else:
        with logging_under(["wandb"], tmp_path):
            assert ended == []
    assert ended == [{"exit_code": int(fails)}, "service"]
    wandb.run = None
    with logging_under(["wandb"], tmp_path):
        pass
    assert ended[2:] == ["service"]


def test_files_next_to_the_checkpoints_are_kept(tmp_path: Path) -> None:
    """Such as codecarbon's; folders are checkpoints."""
    (tmp_path / "checkpoints/checkpoint-1").mkdir(parents=True)
    (tmp_path / "checkpoints/emissions.csv").write_text("kg")
    keep_loose_files(tmp_path / "checkpoints", tmp_path / "logs")
    assert (tmp_path / "logs/emissions.csv").read_text() == "kg"
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-1"]


class FailingCallback:
    """An integration without a login; it fails at its start or when a training begins."""

    fails_in = "on_train_begin"

    def __init__(self) -> None:
        self._fail("__init__")

    def on_train_begin(self, *_: object, **__: object) -> None:
        self._fail("on_train_begin")

    def _fail(self, where: str) -> None:
        if where == self.fails_in:
            raise LookupError("no API key configured\nlong advice")


@pytest.mark.parametrize("where", ["__init__", "on_train_begin"])
def test_an_integrations_error_becomes_a_users_error(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", FailingCallback)
    monkeypatch.setattr(FailingCallback, "fails_in", where)
    with pytest.raises(ConfigError) as caught:
        (callback,) = reporting_callbacks(["wandb", "wandb"])
        callback.on_train_begin(SimpleNamespace(), control=None)
    assert "logging to wandb failed: LookupError: no API key configured\n" in str(caught.value)
