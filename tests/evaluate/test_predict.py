"""`perpo eval`: prompts that cannot be answered count as wrong, are named, and can be retried."""

import shutil
from pathlib import Path

import pytest
from forked_commands import forked_processes
from PIL import Image

from perpo_pipeline import cli
from perpo_pipeline.store.artifacts import Version, open_version

CONFIG = """
run: r
model: {{id: testbed, dtype: float32, device: cpu}}
prepare:
  train: {{source: testbed, num_prompts: 2}}
  test: {{source: jsonl, path: data.jsonl, task: grounding}}
eval:
  {{max_new_tokens: 6, batch_size: 2, prompts_per_part: 2, conditions: [],
    max_errors: {max_errors}}}
"""
PREDICTIONS = Path("data/r/predictions/base@test")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main([*arguments, "--config", "r.yaml", "--quiet"])
    return int(exit_.value.code or 0)


def evaluate(*arguments: str) -> int:
    return run("eval", "--evaluation", "base", *arguments)


def predicted() -> Version:
    return open_version(PREDICTIONS)


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four prompts, one in its own image each; the current directory is the run's."""
    monkeypatch.chdir(tmp_path)
    lines = []
    for number in range(4):
        Image.new("RGB", (32, 32), (60 * number, 0, 0)).save(tmp_path / f"{number}.png")
        lines.append(f'{{"image": "{number}.png", "prompt": "?", "gt_box": [0, 0, 16, 16]}}')
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    (tmp_path / "r.yaml").write_text(CONFIG.format(max_errors=0))
    assert run("prepare") == 0
    return tmp_path


@pytest.fixture
def broken(prepared: Path) -> Path:
    """The third image is damaged after `perpo prepare`; returns its file."""
    (prepared / "2.png").write_bytes(b"damaged")
    return prepared / "2.png"


def test_one_unanswered_prompt_too_many_keeps_finished_parts_and_can_be_repaired(
    broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate() == 2
    message = capsys.readouterr().err
    assert "1 prompts cannot be answered (max_errors 0)" in message and "has changed" in message
    kept = sorted(PREDICTIONS.glob("*/part-*.parquet"))
    assert len(kept) == 2
    written = kept[0].stat().st_mtime_ns
    Image.new("RGB", (32, 32), (120, 0, 0)).save(broken)
    assert evaluate() == 0
    repaired = predicted()
    assert repaired.manifest["counts"] == {"prompts": 4, "failed": 0}
    assert repaired.table("errors").num_rows == 0
    assert kept[0].stat().st_mtime_ns == written, "the first part was whole"
    rows = repaired.table().to_pylist()
    assert "unanswered" not in {row["finish_reason"] for row in rows}
    shutil.rmtree(PREDICTIONS)
    assert evaluate() == 0
    assert predicted().table().to_pylist() == rows, "as if nothing had ever failed"


def test_allowed_unanswered_prompts_count_as_wrong_and_are_named(
    broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("r.yaml").write_text(CONFIG.format(max_errors=1))
    assert evaluate() == 0
    shown = capsys.readouterr().err
    assert "eval base@test: 1 of 4 prompts are unanswered and count as wrong, for example" in shown
    rows = predicted().table().to_pylist()
    prompts = open_version(Path("data/r/prompts/test")).table()["prompt_id"].to_pylist()
    assert [row["prompt_id"] for row in rows] == prompts
    lost = rows[2]
    assert (lost["completion"], lost["completion_token_ids"]) == ("", [])
    assert (lost["finish_reason"], lost["resized"], lost["box"]) == ("unanswered", None, None)
    assert (lost["reward"], lost["parse_ok"]) == (0.0, False)
    (error,) = predicted().table("errors").to_pylist()
    assert error["prompt_id"] == prompts[2] and "has changed" in error["reason"]
    metrics = open_version(Path("data/r/metrics/base@test")).table().to_pylist()
    assert {row["n"] for row in metrics} == {4}
    (share,) = [row["value"] for row in metrics if row["name"] == "unanswered_rate"]
    assert share == 0.25 and "unanswered_rate test all 25.0 %" in " ".join(shown.split())
    assert evaluate("--set", "eval.max_errors=0") == 2, "fewer are allowed now"
    assert "remove this directory" in capsys.readouterr().err


def test_metrics_are_measured_anew_once_an_unanswered_prompt_has_its_answer(broken: Path) -> None:
    Path("r.yaml").write_text(CONFIG.format(max_errors=1))
    assert evaluate() == 0
    Image.new("RGB", (32, 32), (120, 0, 0)).save(broken)
    shutil.rmtree(PREDICTIONS)  # as the message about unanswered prompts says
    assert evaluate() == 0
    metrics = open_version(Path("data/r/metrics/base@test")).table().to_pylist()
    assert [row["value"] for row in metrics if row["name"] == "unanswered_rate"] in ([], [0.0])


def test_no_part_is_begun_after_one_unanswered_prompt_too_many(broken: Path) -> None:
    (broken.parent / "0.png").write_bytes(b"damaged")
    assert evaluate() == 2
    assert len(list(PREDICTIONS.glob("*/part-*.parquet"))) == 1


def test_a_prompt_longer_than_the_context_is_unanswered(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The embedded model's context is 512 tokens."""
    line = '{"image": "0.png", "prompt": "%s", "gt_box": [0, 0, 16, 16]}' % ("left " * 2000)
    with Path("data.jsonl").open("a") as file:
        file.write("\n" + line)
    assert run("prepare") == 0
    assert evaluate() == 2
    assert "leaves no room for an answer in the context of" in capsys.readouterr().err
    assert evaluate("--set", "eval.max_errors=1") == 0
    reasons = [row["finish_reason"] for row in predicted().table().to_pylist()]
    assert reasons[4] == "unanswered" and "unanswered" not in reasons[:4]


def test_several_processes_and_a_restart_give_the_same_rows(prepared: Path) -> None:
    assert evaluate() == 0
    one = predicted()
    rows = one.table().to_pylist()
    assert len(one.parts()) == 2
    shutil.rmtree(PREDICTIONS)
    with forked_processes():
        assert evaluate("--set", "eval.num_gpus=2") == 0
    assert predicted().fingerprint == one.fingerprint
    assert predicted().table().to_pylist() == rows
    # The state after a kill: no manifest, and the second part is missing.
    (one.path / "manifest.json").unlink()
    (one.path / "part-00001.parquet").unlink()
    kept = one.path / "part-00000.parquet"
    written = kept.stat().st_mtime_ns
    assert evaluate() == 0
    assert predicted().table().to_pylist() == rows
    assert kept.stat().st_mtime_ns == written


def test_only_settings_that_the_backend_reads_count(prepared: Path) -> None:
    assert evaluate() == 0
    first = predicted().fingerprint
    assert predicted().manifest["settings"]["backend"] == "transformers"
    for unread in ("served_model=other", "concurrency=3", "condition_prompts=3"):
        assert evaluate("--set", f"eval.{unread}") == 0
        assert predicted().fingerprint == first
    assert evaluate("--set", "eval.batch_size=3") == 0
    assert predicted().fingerprint != first


def test_settings_without_meaning_for_an_engine_are_refused(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = ["--backend", "openai", "--base-url", "http://127.0.0.1:1/v1"]
    assert evaluate(*url, "--set", "eval.num_gpus=2") == 2
    message = capsys.readouterr().err
    assert "num_gpus has no meaning for the openai backend" in message
    assert "eval.concurrency" in message
    assert evaluate("--set", "eval.num_actors=2") == 2
    assert "set eval.engine to ray" in capsys.readouterr().err
    assert evaluate("--backend", "openai") == 2
    assert "--base-url" in capsys.readouterr().err
