"""A method that is added to METHODS works everywhere: configuration, training, report."""

import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor

from perpo_pipeline.cli import main
from perpo_pipeline.config.methods import METHODS, Method
from perpo_pipeline.store.artifacts import open_version

CONFIG = """
run: r
model: {id: testbed, dtype: float32, device: cpu}
prepare:
  train: {source: testbed, num_prompts: 8}
  test: {source: testbed, num_prompts: 4}
sample: {num_samples: 4, temperature: 1.0, max_new_tokens: 24, batch_size: 8}
filter: {min_margin: 0.01, max_lists: 4}
train:
  batch_size: 4
  epochs: 2
  learning_rate: 1.0e-3
  lora: {rank: 2, alpha: 4}
  methods:
    sft: {}
    hinge: {beta: 3.0}
    pro: {order: widest-first}
    list-mle: {}
    infonca: {}
    mdpo: {}
eval: {max_new_tokens: 24, batch_size: 4, conditions: [], models: [base, hinge]}
report: {num_resamples: 100, pictures: 1}
"""


def hinge_loss(
    policy_logps: Tensor,
    ref_logps: Tensor,
    rewards: Tensor,
    *,
    beta: float,
    counts: Tensor,
    mask: Tensor,
) -> Tensor:
    """max(0, beta - (s_best - s_worst)) over pairs, which stand in this order."""
    assert rewards.shape[1] == 2 and bool((rewards[:, 0] > rewards[:, 1]).all())
    scores = policy_logps - ref_logps
    return torch.relu(beta - (scores[:, 0] - scores[:, 1]))


@pytest.fixture
def hinge(monkeypatch: pytest.MonkeyPatch) -> Method:
    module: Any = ModuleType("made_up_losses")
    module.hinge_loss = hinge_loss
    monkeypatch.setitem(sys.modules, "made_up_losses", module)
    method = Method(
        "hinge", "Hinge", "#123456", "pair", "made_up_losses:hinge_loss", frozenset({"beta"})
    )
    monkeypatch.setitem(METHODS, "hinge", method)
    return method


def perpo(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--config", "r.yaml"])
    return int(ended.value.code or 0)


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(CONFIG)
    return tmp_path


def test_an_added_method_is_planned_trained_evaluated_and_reported(
    workdir: Path, hinge: Method, capsys: pytest.CaptureFixture[str]
) -> None:
    assert perpo("make-rules") == 0
    assert "hinge" in capsys.readouterr().out
    for stage in ("prepare", "sample", "score", "filter"):
        assert perpo(stage, "--quiet") == 0

    assert perpo("train", "--method", "hinge", "--quiet", "--dry-run") == 0
    assert "4 of data/r/preferences" in capsys.readouterr().out
    assert perpo("train", "--quiet") == 0  # every method
    version = open_version(Path("data/r/adapter/hinge"))
    assert version.manifest["settings"]["method"] == "hinge"
    log: Any = pl.from_arrow(version.table())
    # Policy = reference at the first step: the loss is beta; later the margin has grown.
    assert log.height == 2 and log["loss"][0] == pytest.approx(3.0, abs=1e-3)
    assert log["loss"][1] < 3.0 and log["reward_accuracy"][0] == pytest.approx(0.5)

    for name in ("pro", "list-mle", "infonca", "mdpo"):  # both steps have the same four lists
        first, second = open_version(Path("data/r/adapter", name)).table()["loss"].to_pylist()
        assert 0 < second < first
    assert first == pytest.approx(3 * math.log(2), abs=1e-3)  # mDPO: its references were found
    blank = open_version(Path("data/r/reference/train-blank-image"))
    assert blank.manifest["settings"]["shown_image"] == "blank" and len(blank.table()) == 4
    assert "shown_image" not in open_version(Path("data/r/reference/train")).manifest["settings"]

    for model in ("base", "hinge"):
        assert perpo("eval", "--evaluation", model, "--quiet") == 0
    assert perpo("report", "--quiet") == 0
    (page,) = Path("data/r/report").glob("default/*/*.html")
    text = page.read_text()
    assert hinge.label in text and hinge.colour in text
    settings_row = text.split('data-training="hinge"')[1].split("</tr>")[0]
    assert "3" in settings_row and "–" in settings_row, "beta is used, gamma is not"


def test_an_added_method_refuses_what_it_does_not_use(
    workdir: Path, hinge: Method, capsys: pytest.CaptureFixture[str]
) -> None:
    (workdir / "r.yaml").write_text(CONFIG.replace("beta: 3.0", "gamma: 1.0"))
    assert perpo("make-rules") == 2
    assert "methods.hinge: hinge does not use gamma" in capsys.readouterr().err


def test_without_its_record_it_is_no_method(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert perpo("make-rules") == 2
    assert "there is no method 'hinge'" in capsys.readouterr().err


def test_a_blank_image_needs_pairs() -> None:
    with pytest.raises(ValueError, match="blank_image needs pairs"):
        Method("x", "X", "#123456", "lists", "made_up_losses:x", blank_image=True)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_record_names_a_loss_that_takes_its_settings(method: Method) -> None:
    import inspect

    assert method.name in METHODS and METHODS[method.name] is method
    parameters = inspect.signature(method.load_loss()).parameters
    assert method.settings <= parameters.keys()
    assert {"counts", "mask"} <= parameters.keys() or not method.needs_preferences
