"""The files of rounds: that of the shipped run, what Make does with it, and one of each round."""

from pathlib import Path

import pytest
import yaml

from perpo_pipeline import cli
from perpo_pipeline.commands.make_rules import rules
from perpo_pipeline.config.file import load_config
from perpo_pipeline.rounds.checks import method_of
from perpo_pipeline.rounds.round_files import Part, write_round
from perpo_pipeline.store.artifacts import Version

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "configs" / "demo-rounds.yaml"


def test_make_makes_the_rounds_of_a_file_that_has_the_section() -> None:
    assert "ALL := rounds-shown" in [*rules(load_config(SHIPPED))]
    assert not [
        line for line in rules(load_config(ROOT / "configs" / "demo.yaml")) if "ALL" in line
    ]
    text = (ROOT / "stages/rules.mk").read_text()
    assert "\nall: $(or $(ALL),report-shown)\n" in text and "\nrounds-shown: " in text


def test_the_status_of_such_a_file_names_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--set", f"data_root={tmp_path}"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["status", "--config", str(SHIPPED), *root])
    assert not ended.value.code
    (line,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("rounds, each"))
    assert f"perpo iterate --config {SHIPPED}" in line and str(tmp_path) in line


def test_the_file_of_a_round_has_the_settings_of_its_run(tmp_path: Path) -> None:
    given = {"train.seeds": [3, 4], "data_root": str(tmp_path), "eval.conditions": ["blank-image"]}
    given |= {"rounds.method": "perpo-seed4", "model.revision": "main", "eval.normalise": "nfc"}
    run = load_config(SHIPPED, given)
    splits = ("train", "validation", "test")
    prompts = {name: Version(tmp_path / "prompts" / name / "f", {}) for name in splits}
    merged = tmp_path / "demo-rounds" / "round-1" / "model" / "abc"
    one = write_round(
        run, method_of(run), prompts, Part(600, 600), number=2, model=merged, max_lists=9
    )
    own, raw = one.config, yaml.safe_load(one.file.read_text())
    assert one.file == tmp_path / "demo-rounds" / "round-2.yaml"
    assert own.run_dir == tmp_path / "demo-rounds" / "round-2"
    assert own.model == run.model.model_copy(update={"id": str(merged), "revision": None})
    assert raw["prepare"]["train"] == {
        "source": "prompts",
        "path": str(tmp_path / "prompts" / "train" / "f"),
        "start": 600,
        "num_prompts": 600,
    }
    (mine,) = own.train.variants().items()
    assert mine == ("perpo-seed4", run.train.variants()["perpo-seed4"])
    assert own.filter == run.filter.model_copy(update={"max_lists": 9})
    assert (own.sample, own.score, own.seed) == (run.sample, run.score, run.seed)
    assert own.eval_variants() == ["perpo-seed4@validation", "perpo-seed4@test"]
    assert own.eval.normalise == ["nfc"] and "rounds" not in raw
    before = one.file.stat().st_mtime_ns
    write_round(run, "perpo-seed4", prompts, Part(600, 600), number=2, model=merged, max_lists=9)
    assert one.file.stat().st_mtime_ns == before  # what is equal is not written again
