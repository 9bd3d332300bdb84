"""`perpo export --push-to-hub` with the real client against a hub on loopback."""

import re
from pathlib import Path

import pytest
import yaml
from fake_hub import TOKEN, FakeHub
from synthetic_run import prepare_synthetic, synthetic_config

from perpo_pipeline.cli import main
from perpo_pipeline.run import Run


def test_an_export_is_uploaded_as_a_dataset(
    hub: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(synthetic_config(tmp_path / "data", num_prompts=4), quiet=True)
    prompts = prepare_synthetic(run, "train")
    file, out = tmp_path / "run.yaml", tmp_path / "out"
    scenes = {"source": "testbed", "num_prompts": 4}
    settings = {
        "run": "r",
        "data_root": str(tmp_path),
        "prepare": {"train": scenes, "test": scenes},
    }
    file.write_text(yaml.safe_dump(settings))
    arguments = ["export", "--to", "grpo", "--out", str(out), "--config", str(file)]
    arguments += ["--prompts", str(prompts.path), "--embed-images"]
    hub.refuse["/create"] = 403
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--out", str(tmp_path / "first"), "--push-to-hub", "lab/refused"])
    assert ended.value.code == 2
    again = f"the export is kept: .* then run: hf upload --repo-type dataset lab/refused {tmp_path}"
    assert re.search(again, capsys.readouterr().err.replace("\n", " "))
    hub.refuse.clear()
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--push-to-hub", "lab/prompts", "--private"])
    captured = capsys.readouterr()
    assert not ended.value.code, captured.err
    assert any("/api/datasets/lab/prompts" in path for path in hub.paths)
    assert hub.private == {"lab/prompts": True}
    files = {str(f.relative_to(out)): f.read_bytes() for f in out.rglob("*") if f.is_file()}
    assert hub.files["lab/prompts"] == files
    assert files.keys() == {"README.md", "data/train-00000-of-00001.parquet"}
    assert captured.out == f"{out}\n" and TOKEN not in captured.err
    assert f"export: pushed to {hub.url}/lab/prompts" in captured.err
