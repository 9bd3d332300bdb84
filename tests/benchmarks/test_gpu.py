"""What a GPU machine runs first: benchmarks/gpu/, rehearsed on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("check", "train", "step", "levers", "sample", "ways", "pages")


def run(
    out: Path, *, wanted: str, budget: int, python: str = sys.executable, dry: str = "1"
) -> subprocess.CompletedProcess[str]:
    given = {"DRY": dry, "OUT": str(out), "PARTS": wanted, "BUDGET": str(budget)}
    return subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu" / "run.sh")],
        cwd=out,
        env=os.environ | given | {"PYTHON": python},
        capture_output=True,
        text=True,
        check=False,
    )


def test_parts_without_time_are_skipped_and_named(tmp_path: Path) -> None:
    done = run(tmp_path, wanted=" ".join(NEEDED), budget=10)
    assert done.returncode == 0, done.stderr
    skipped = [line for line in done.stdout.splitlines() if "skipped" in line]
    assert [line.split()[1] for line in skipped] == [f"{name}:" for name in NEEDED]
    assert skipped == (tmp_path / "run.log").read_text().splitlines()[-1 - len(NEEDED) : -1]
    assert done.stdout.splitlines()[-1].endswith(f"results in {tmp_path}")


def test_a_part_writes_its_json_and_its_log(tmp_path: Path) -> None:
    """One part, which takes seconds; the whole rehearsal is DRY=1 bash benchmarks/gpu/run.sh."""
    done = run(tmp_path, wanted="step", budget=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "step.json").read_text())["rows"]
    assert [(row["regime"], row["variant"]) for row in rows] == [
        ("llava15-grounding", way) for way in ("concatenated-same-settings", "shared-prefix")
    ]
    assert all(row["rounds"] == 2 and row["ms_per_prompt"] > 0 for row in rows)
    assert "llava15-grounding: prefix 20" in (tmp_path / "run.log").read_text()


def test_a_part_that_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    done = run(tmp_path, wanted="step sample", budget=300, python="false")
    assert done.returncode == 1
    assert [line for line in done.stdout.splitlines() if "exit code" in line] == [
        "== step: exit code 1",
        "== sample: exit code 1",
    ]


def test_without_a_card_the_script_says_once_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = run(tmp_path, wanted=" ".join(NEEDED), budget=300, dry="")
    assert done.returncode == 2
    assert [line[:10] for line in done.stdout.splitlines() if line.startswith("== ")] == [
        "== check: ",
        "== check: ",
    ]
    assert done.stdout.count("perpo: error: ") == 1 and "Traceback" not in done.stdout


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch):
    """The scripts of benchmarks/gpu/ as modules."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "gpu")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # which the scripts set
    import figures
    import levers
    import made_lists
    import train_run

    return {"figures": figures, "levers": levers, "made": made_lists, "train": train_run}


def test_levers_are_timed_until_the_time_is_over(
    scripts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, file = scripts["levers"], tmp_path / "levers.json"
    chosen = script.settings("h200")
    assert chosen[0] == ("as it is", [], "any")
    assert chosen[-1] == ("as it is, bucketed rows", [], "bucketed")
    assert chosen[1][0] == "all levers" and "flex-autotune" not in chosen[1][1]
    assert {name for name, _, _ in chosen[2:-1]} == set(script.LEVERS)
    monkeypatch.setattr(script, "settings", lambda preset: [chosen[0], chosen[-1]])
    script.main(["--preset", "dry", "--json", str(file)])
    found = json.loads(file.read_text())
    assert [row["setting"] for row in found["rows"]] == ["as it is", "as it is, bucketed rows"]
    assert found["left"] == [] and found["optimiser_ms_per_step"]["master_adamw"] > 0
    for row in found["rows"]:
        assert row["ms_range"][0] <= row["ms_per_prompt"] <= row["ms_range"][1]
        assert row["max_abs_dlogp_nats"] < 1e-4
    script.main(["--preset", "dry", "--json", str(file), "--seconds", "-1"])


def test_a_setting_without_room_is_recorded_and_the_next_goes_on(
    scripts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    script, file = scripts["levers"], tmp_path / "levers.json"
    original = script.set_scene

    def too_large(preset: str, row_lengths: str, levers: list[str]):
        if row_lengths == "any":
            raise torch.OutOfMemoryError("no room")
        return original(preset, row_lengths, levers)

    chosen = script.settings("dry")
    monkeypatch.setattr(script, "settings", lambda preset: [chosen[0], chosen[-1]])
    monkeypatch.setattr(script, "set_scene", too_large)
    script.main(["--preset", "dry", "--json", str(file)])
    rows = json.loads(file.read_text())["rows"]
    assert rows[0]["note"] == "out of memory" and "ms_per_prompt" not in rows[0]
    assert rows[1]["ms_per_prompt"] > 0


def test_made_lists_are_ranked_and_distinct(scripts, tmp_path: Path) -> None:
    from perpo_pipeline.config.run import RunConfig
    from perpo_pipeline.run import Run

    source = {"source": "testbed", "num_prompts": 3}
    config = {"run": "t", "data_root": str(tmp_path), "prepare": {"train": source}}
    run_ = Run(RunConfig.model_validate(config | {"eval": {"splits": ["train"]}}), quiet=True)
    rows = scripts["made"].write_lists(run_, 3, 5).table().to_pylist()
    assert len(rows) == 3
    for row in rows:
        assert len(set(row["completions"])) == len(row["completion_token_ids"]) == 5
        assert row["rewards"] == sorted(row["rewards"], reverse=True)
        assert 0.2 < row["margin"] == row["rewards"][0] - row["rewards"][-1] <= 1


def test_figures_are_replaced_as_a_whole(scripts, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "x.json"
    scripts["figures"].save(None, {})
    for number in range(2):
        scripts["figures"].save(file, {"rows": [number]})
        assert json.loads(file.read_text()) == {"rows": [number]}
    assert list(file.parent.iterdir()) == [file]
