"""A whole run on weights in 4 bits: sampled, trained, evaluated, asked and merged."""

import json
from pathlib import Path

import pytest

from perpo_pipeline.cli import main
from perpo_pipeline.store.artifacts import open_version

CONFIG = """
run: r
model: {id: testbed, dtype: float32, device: cpu, quantization: nf4}
prepare:
  train: {source: testbed, num_prompts: 6}
  test: {source: testbed, num_prompts: 6}
sample: {num_samples: 4, temperature: 1.0, max_new_tokens: 24, batch_size: 6}
filter: {min_margin: 0.01}
train:
  batch_size: 2
  learning_rate: 5.0e-3
  lora: {rank: 4, alpha: 8}
  gradient_checkpointing: true
  methods: {perpo: {beta: 1.0}}
eval: {max_new_tokens: 24, batch_size: 6, conditions: []}
"""
FULL = ("--set", "model.quantization=null")


def perpo(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--quiet"])
    return int(ended.value.code or 0)


def texts(path: str) -> list[str]:
    table = open_version(Path(path)).table()
    return [str(text) for text in table["completion"].to_pylist()]


def test_a_run_in_4_bits_ends_in_a_merged_model_that_answers_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With gradient checkpointing, the reference and the self-check; the merged model needs no
    setting; on the full base the adapter is refused."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(CONFIG)
    config = ("--config", "r.yaml")
    for stage in ("prepare", "sample", "score", "filter", "train"):
        assert perpo(stage, *config) == 0
    assert "self-check passed" in capfd.readouterr().err
    adapter = open_version(Path("data/r/adapter/perpo"))
    assert adapter.manifest["settings"]["quantization"] == "nf4"
    assert "bitsandbytes" in adapter.manifest["packages"]
    losses = adapter.table()["loss"].to_pylist()
    assert losses[0] == pytest.approx(0.6931, abs=0.01) and losses[1] != losses[0]
    assert perpo("eval", *config, "--evaluation", "perpo") == 0
    answers = texts("data/r/predictions/perpo@test")
    assert perpo("eval", *config, *FULL, "--evaluation", "perpo", "--allow-stale") == 2
    error = capfd.readouterr().err
    assert "trained on weights quantised to nf4, and the model has weights in full" in error
    assert "set model.quantization to nf4; or merge it with `perpo merge`" in error

    assert perpo("merge", "--adapter", "data/r/adapter/perpo", "--out", "merged") == 0
    record = json.loads(Path("merged/perpo_merge.json").read_text())
    assert record["base_quantization"] == "nf4" and record["dtype"] == "float32"
    card = Path("merged/README.md").read_text()
    assert "quantised to nf4 by bitsandbytes" in card and "quantization: nf4" in card
    merged = ("--set", "model.id=merged", "--evaluation", "base", "--out", "of-merged")
    assert perpo("eval", *config, *FULL, *merged) == 0
    (found,) = Path("of-merged/predictions").glob("*/manifest.json")
    assert texts(str(found.parent)) == answers
