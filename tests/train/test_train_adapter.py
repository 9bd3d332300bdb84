"""`perpo train` as a command: forwards, lists that are too long, and the shared reference."""

import json
import re
import shutil
from collections.abc import Callable
from math import log
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import polars as pl
import pytest
import yaml
from safetensors.torch import load_file, save_file

from perpo_pipeline.cli import main
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.errors import InputError
from perpo_pipeline.run import Pinned, Run, make
from perpo_pipeline.store.artifacts import follow_current, input_of, open_version
from perpo_pipeline.store.writing import Recipe
from perpo_pipeline.testbed import shipped_model_dir
from perpo_pipeline.train import (
    batches,
    image_workers,
    references,
    self_check,
    task,
    train_adapter,
)
from perpo_pipeline.vlm import chat, families, loading, models

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
  methods: {perpo: {beta: 1.0}, lipo: {beta: 1.0}, sft: {}}
eval: {max_new_tokens: 24, batch_size: 4, conditions: []}
"""


def perpo(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--config", "r.yaml", "--quiet"])
    code = ended.value.code
    return 0 if code is None else int(code)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to its preferences; tests train in copies of it."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "r.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        for stage in ("prepare", "sample", "score", "filter"):
            assert perpo(stage) == 0
    return folder


def test_a_cell_of_a_sweep_is_not_told_to_filter_another_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = RunConfig.model_validate(yaml.safe_load(CONFIG))
    few = SimpleNamespace(variant="perpo", settings=config.train.variants()["perpo"])
    for pinned, advises in ((None, True), (Pinned(), False)):
        train_adapter._warn_of_few_steps(Run(config, pinned=pinned), cast(task.Task, few), 4)
        said = capsys.readouterr().err
        assert "train: 4 lists make 1 optimiser step of perpo" in said
        assert ("What would help: perpo filter" in said) == advises


@pytest.fixture
def workdir(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the prepared run, in which the test works."""
    folder = tmp_path / "run"
    shutil.copytree(prepared, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def test_the_reference_is_computed_once_for_all_methods(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert perpo("train", "--method", "perpo") == 0
    place = follow_current(Path("data/r/adapter/perpo"))
    config = json.loads((place / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None  # the testbed is no model of a hub
    message = capsys.readouterr().err
    assert "self-check passed" in message and "reference train: up to date" not in message
    assert re.search(r"train: \d lists make \d optimiser steps? of perpo", message)
    assert "What would help: perpo filter --config" in message and "more prompts" not in message
    assert perpo("train", "--method", "lipo", "--set", "train.max_tokens_per_forward=300") == 0
    assert "reference train: up to date" in capsys.readouterr().err
    assert len(list(Path("data/r/reference/train").glob("*/manifest.json"))) == 1
    assert perpo("train", "--method", "perpo", "--set", "train.forward=separate") == 0
    message = capsys.readouterr().err
    assert "self-check" not in message and "reference train: up to date" not in message
    log = [
        open_version(p.parent).table() for p in Path("data/r/adapter").glob("perpo/*/manifest.json")
    ]
    shared, plain = (pl.from_arrow(table)["loss"] for table in log)
    assert (shared - plain).abs().max() < 1e-4


@pytest.fixture
def another_model(tmp_path: Path) -> Path:
    """The shipped model with other weights."""
    folder = tmp_path / "another"
    shutil.copytree(shipped_model_dir(), folder)
    (file,) = folder.glob("*.safetensors")
    moved = {name: 1.1 * tensor for name, tensor in load_file(file).items()}
    save_file(moved, file, metadata={"format": "pt"})
    return folder


def watched(real: Callable[..., models.Vlm], opened: list[str]) -> Callable[..., models.Vlm]:
    """`open_model`, which adds the id of each model to `opened`."""

    def open_model(config: ModelConfig, *given: Any) -> models.Vlm:
        opened.append(config.id)
        return real(config, *given)

    return open_model


def test_another_model_gives_the_reference_as_it_would_for_itself(
    workdir: Path,
    another_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    opened: list[str] = []
    for module in (references, train_adapter):
        monkeypatch.setattr(module, "open_model", watched(module.open_model, opened))
    reference, adapter = Path("data/r/reference/train"), Path("data/r/adapter/perpo")
    own = ["train", "--method", "perpo"]
    given = ("--set", f"train.reference_model={another_model}")
    assert perpo(*own, *given) == 0
    assert opened == [str(another_model), "testbed"]
    made, trained = open_version(reference), open_version(adapter)
    identity = made.manifest["settings"]["model"]
    assert trained.manifest["settings"]["reference_model"] == identity
    assert trained.manifest["settings"]["model"] != identity
    assert abs(trained.table()["loss"][0].as_py() - log(2)) > 1e-3
    assert f"the reference is {another_model}" in capsys.readouterr().err
    # Its log-probabilities are there for other methods, so that the model is not loaded again.
    assert perpo("train", "--method", "lipo", *given) == 0
    assert opened == [str(another_model), "testbed", "testbed"]
    # They are those of a training of the model itself, whose first step has no preference.
    assert perpo(*own, "--set", f"model.id={another_model}", "--allow-stale") == 0
    assert "reference train: up to date" in capsys.readouterr().err
    assert abs(open_version(adapter).table()["loss"][0].as_py() - log(2)) < 1e-3
    # The trained model as its own reference is no other training; what was trained is stale now.
    assert perpo(*own) == 0
    plain = open_version(adapter)
    capsys.readouterr()
    assert perpo(*own, "--set", "train.reference_model=testbed") == 0
    assert "train perpo: up to date" in capsys.readouterr().err
    assert perpo(*own, *given) == 0
    assert open_version(adapter).path == trained.path != plain.path
    assert perpo("eval", "--evaluation", "perpo") == 0
    said = capsys.readouterr().err
    assert f"made with train.reference_model {another_model}, the configuration says null" in said
    assert perpo(*own, "--set", "train.reference_model=nowhere/at/all") == 2
    assert "train.reference_model: The model directory" in capsys.readouterr().err


def test_an_untested_family_is_proven_on_its_own_weights_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """When sampling, and before training also on one of its lists with gradients."""
    monkeypatch.setattr(families, "FAMILIES", {})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(CONFIG)
    for command in ("prepare", "sample", "score", "filter"):
        assert perpo(command) == 0
    assert "completions share their prompt: it is exact on this model's own" in notes("samples")
    capsys.readouterr()
    assert perpo("train", "--method", "perpo") == 0
    message = capsys.readouterr().err
    assert message.count("'llava' model shares a prefix: exact on one list; gradients off by") == 1
    assert "self-check passed" in message
    assert "shared-prefix: exact on one list; gradients" in notes("adapter")
    assert perpo("eval", "--evaluation", "perpo") == 0


def notes(artifact: str) -> str:
    """What the manifest of the version in use says about its making."""
    (place,) = Path("data/r", artifact).iterdir()
    return str(open_version(place).manifest["notes"])


@pytest.mark.parametrize("exact", [False, None], ids=["inexact", "when trained"])
def test_a_family_that_fails_its_proof_is_trained_the_plain_way(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    exact: bool | None,
) -> None:
    """By the made-up prompts, or (`None`) by the first list alone."""
    monkeypatch.setattr(families, "FAMILIES", {})
    refused = models.Way(False, "it is not exact on this model: 3 nats")
    if exact is None:
        monkeypatch.setattr(self_check, "prove_training", lambda *given, **how: refused)
    else:
        monkeypatch.setattr(loading, "prove_way", lambda vlm: refused)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(CONFIG)
    for command in ("prepare", "sample", "score", "filter"):
        assert perpo(command) == 0
    assert ("which is slow: it is not exact" in notes("samples")) is (exact is False)
    capsys.readouterr()
    assert perpo("train", "--method", "perpo") == 0
    message = capsys.readouterr().err
    assert message.count("(forward: separate) for this 'llava' model, which is slow: it is") == 1
    assert "self-check passed" not in message
    assert "separate: it is not exact on this model: 3 nats" in notes("adapter")


@pytest.fixture
def too_long(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompt_ids of two lists that are longer than the model's context."""
    rows = open_version(Path("data/r/preferences/train")).table().to_pylist()
    chosen = [row["prompt_id"] for row in rows[1:3]]
    real = task.count_row_tokens

    def count(vlm: models.Vlm, row: dict[str, Any], preprocess: str) -> int:
        return real(vlm, row, preprocess) + 1000 * (row["prompt_id"] in chosen)

    monkeypatch.setattr(task, "count_row_tokens", count)
    monkeypatch.setattr(task, "context_length", lambda vlm: 1000)
    return chosen


def test_a_list_longer_than_the_context_is_named_and_left_out_on_request_alone(
    too_long: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = open_version(Path("data/r/preferences/train")).manifest["rows"]
    capsys.readouterr()
    assert perpo("train", "--method", "perpo") == 2
    message = capsys.readouterr().err
    assert all(p in message for p in too_long) and "--set train.drop_too_long=true" in message
    assert perpo("train", "--method", "perpo", "--set", "train.drop_too_long=true") == 0
    assert f"dropped {len(too_long)} lists" in capsys.readouterr().err
    counts = open_version(Path("data/r/adapter/perpo")).manifest["counts"]
    assert counts["dropped_too_long"] == len(too_long)
    assert counts["lists"] == rows - len(too_long)


@pytest.mark.parametrize("method", ["perpo", "sft"])
def test_a_dry_run_leaves_out_the_lists_that_training_leaves_out(
    too_long: list[str], capsys: pytest.CaptureFixture[str], method: str
) -> None:
    kept = open_version(Path("data/r/preferences/train")).manifest["rows"] - len(too_long)
    dry_run = ("train", "--method", method, "--dry-run")
    capsys.readouterr()
    assert perpo(*dry_run) == 2
    message = capsys.readouterr().err
    assert all(p in message for p in too_long) and "--set train.drop_too_long=true" in message
    assert perpo(*dry_run, "--set", "train.drop_too_long=true") == 0
    plan = capsys.readouterr().out
    assert f"  lists      {kept} of data/r/preferences/train/" in plan
    assert f"{len(too_long)} longer than the model's context are dropped" in plan
    assert f"  steps      {-(-kept // 4)} = {-(-kept // 4)} per epoch ({kept} lists / 4" in plan


def test_earlier_lists_of_another_tokenizer_are_refused_before_training(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also by a dry run; lists of this model's own samples pass."""
    first = open_version(Path("data/r/preferences/train"))
    rows = first.table().to_pylist()
    for row in rows:
        row["completion_token_ids"] = [
            [*ids[-2::-1], ids[-1]] for ids in row["completion_token_ids"]
        ]
    run = Run(RunConfig.model_validate(yaml.safe_load(CONFIG)), quiet=True)
    inputs = {"prompts": input_of(first, "prompts")}
    recipe = Recipe("preferences", "other", "filter", 1, {}, inputs)
    other = make(run, recipe, lambda writer: writer.write_part(0, rows) or {})
    for earlier, code in ((first.path, 0), (other.path, 2)):
        settings = {"earlier": earlier.resolve(), "keep_earlier": 1.0, "max_lists": 1}
        sets = [part for k, v in settings.items() for part in ("--set", f"filter.{k}={v}")]
        assert perpo("filter", *sets) == 0
        capsys.readouterr()
        assert perpo("train", "--method", "perpo", "--dry-run") == code
        said = capsys.readouterr().err
        assert ("token ids of another tokenizer" in said) is bool(code)


def test_images_prepared_by_other_processes_give_the_same_result(workdir: Path) -> None:
    """The second training computes the reference again, also with image workers."""
    shutil.copytree("data", "other/data", symlinks=True)
    assert perpo("train", "--method", "perpo") == 0
    first = open_version(Path("data/r/adapter/perpo")).table()["loss"].to_pylist()
    text = CONFIG.replace(
        "batch_size: 4\n  learning", "batch_size: 4\n  num_workers: 2\n  learning"
    )
    (workdir / "r.yaml").write_text(f"data_root: other/data\n{text}")
    assert perpo("train", "--method", "perpo") == 0
    again = open_version(Path("other/data/r/adapter/perpo")).table()["loss"].to_pylist()
    assert again == first


def test_a_worker_reports_a_changed_image_as_the_process_itself_would(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = InputError(
        "the image has changed", where="/images/photo.png", fix="rerun `perpo prepare`"
    )

    def fail(*args: object) -> None:
        raise changed

    monkeypatch.setattr(batches, "encode_row", fail)
    monkeypatch.setattr(image_workers, "START_METHOD", "fork")  # only a fork inherits the patch
    text = CONFIG.replace("batch_size: 4\n", "batch_size: 4\n  num_workers: 2\n")
    (workdir / "r.yaml").write_text(text)
    capsys.readouterr()
    assert perpo("train", "--method", "perpo") == 2
    assert str(changed) in capsys.readouterr().err


def test_a_dry_run_prints_what_would_be_started_and_starts_nothing(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """8 prompts, of which n have a preference: n / 4 steps, rounded up."""
    capsys.readouterr()
    flags = ("--method", "perpo", "--dry-run", "--num-processes", "2", "--deepspeed", "zero3")
    assert perpo("train", *flags) == 0
    message = capsys.readouterr().out
    kept = open_version(Path("data/r/preferences/train")).manifest["rows"]
    command = next(line for line in message.splitlines() if line.startswith("  command"))
    assert "torchrun --standalone --nproc-per-node 2" in command
    assert command.endswith("--config r.yaml --quiet") and "--dry-run" not in command
    assert f"  lists      {kept} of data/r/preferences/train/" in message
    assert f"  steps      {-(-kept // 4)} = {-(-kept // 4)} per epoch" in message
    assert "  step       4 lists over 2 processes, 1 forwards each" in message
    assert "  processes  2: 2 on this node" in message and "  deepspeed  zero3" in message
    assert "GiB in each process, computed: weights " in message
    assert not list(Path("data/r").glob("adapter/**/*.json"))


def test_more_processes_than_lists_per_step_are_refused_before_they_start(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert perpo("train", "--method", "perpo", "--num-processes", "5") == 2
    message = capsys.readouterr().err
    assert "train.batch_size is 4 lists per step, for 5 processes" in message
    assert "use at most 4 processes" in message


def test_a_step_that_is_not_shared_evenly_is_reported(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    dry_run = ("train", "--method", "perpo", "--dry-run")
    assert perpo(*dry_run, "--num-processes", "3") == 0
    assert "4 lists over 3 processes" in capsys.readouterr().out
    assert perpo(*dry_run, "--set", "train.num_processes=3") == 0
    assert "4 lists over 3 processes" in capsys.readouterr().out
    assert perpo(*dry_run, "--set", "train.num_processes=3", "--num-processes", "2") == 0
    assert "4 lists over 2 processes" in capsys.readouterr().out


def test_each_method_is_trained_by_its_own_number_of_processes(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert perpo("train", "--dry-run", "--set", "train.methods.perpo.num_processes=2") == 0
    printed = capsys.readouterr().out
    assert printed.count("  processes  2: 2 on this node") == 1
    assert printed.count("  processes  1, here") == 2


@pytest.fixture
def opened(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As if the model's chat template opened a thought."""
    monkeypatch.setattr(chat, "opens_thought", lambda vlm: True)
    monkeypatch.setattr(chat, "find_thought_end", lambda vlm: "\n</think>\n\n")
    return workdir


def test_a_thought_that_the_template_opens_must_be_stated_for_sft(
    opened: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert perpo("train", "--method", "sft", "--dry-run") == 2
    assert "set model.answer.thinking to opened" in capsys.readouterr().err
    targets: list[str] = []
    real = task.ground_truth_list

    def record(entry: Any, vlm: Any, *settings: Any) -> Any:
        found = real(entry, vlm, *settings)
        targets.append(vlm.tokenizer.decode(found.completions[0]))
        return found

    monkeypatch.setattr(task, "ground_truth_list", record)
    stated = ("--set", "model.answer.thinking=opened", "--allow-stale")  # else: score again
    assert perpo("train", "--method", "sft", "--dry-run", *stated) == 0
    assert targets and all(target.startswith("\n</think>\n\n[") for target in targets)
    assert perpo("train", "--method", "perpo", "--dry-run") == 0  # trains on what was drawn


@pytest.mark.parametrize("stage", ["sample", "eval"])
def test_a_thought_that_the_template_opens_must_be_stated_for_answers(
    opened: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    arguments = ("eval", "--evaluation", "base") if stage == "eval" else ("sample",)
    other = ("--set", f"{stage}.max_new_tokens=9")  # nothing is there yet
    capsys.readouterr()
    assert perpo(*arguments, *other) == 2
    assert "set model.answer.thinking to opened" in capsys.readouterr().err
