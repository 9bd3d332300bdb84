"""A chain of two tiny rounds with the real stages: each samples and trains on the merged model."""

from pathlib import Path

import pytest

from perpo_pipeline import cli
from perpo_pipeline.store.artifacts import input_of, open_version

FILE = """
run: tiny
data_root: {root}
model: {{id: testbed, dtype: float32, device: cpu}}
prepare:
  train: {{source: testbed, num_prompts: 24}}
  validation: {{source: testbed, num_prompts: 6}}
sample: {{num_samples: 4, max_new_tokens: 24, temperature: 0.9}}
filter: {{min_margin: 0.05}}
train:
  batch_size: 4
  lora: {{rank: 4, alpha: 8}}
  methods: {{perpo: {{learning_rate: 1.0e-3}}}}
eval: {{splits: [validation], max_new_tokens: 24}}
rounds: {{num: 2, alpha: null, report_on: null, keep_lists: 0.5}}
"""


def perpo(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--quiet"])
    assert not ended.value.code


def logps_of(reference: Path) -> dict[str, list[float]]:
    columns = open_version(reference).table().to_pydict()
    return dict(zip(columns["prompt_id"], columns["ref_logps"], strict=True))


@pytest.mark.slow
def test_two_real_rounds_and_a_stage_of_the_second_by_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, data = tmp_path / "tiny.yaml", tmp_path / "data" / "tiny"
    file.write_text(FILE.format(root=tmp_path / "data"))
    perpo("iterate", "--config", str(file))
    base, first, second = open_version(data / "rounds" / "default").table().to_pylist()
    assert base["model"] == first["model"] != second["model"]
    assert second["model"] == first["merged"] and second["merged"] != first["merged"]
    assert first["adapter_sha256"] != second["adapter_sha256"]
    adapter = open_version(data / "round-2" / "adapter" / "perpo")
    for made in (input_of(adapter, "samples"), adapter):
        assert made.manifest["settings"]["model"] == first["merged"]
    reference = open_version(data / "round-2" / "reference" / "train")
    assert reference.manifest["settings"]["model"] == first["merged"]
    # The lists that were kept have log-probabilities under the model that this round began with.
    places = (data / name / "reference" / "train" for name in ("round-1", "round-2"))
    before, after = map(logps_of, places)
    kept = before.keys() & after.keys()
    assert len(kept) == round(len(before) / 2) > 0
    assert all(before[prompt] != after[prompt] for prompt in kept)
    assert second["num_lists"] == len(after) > len(kept)
    capsys.readouterr()
    perpo("train", "--config", str(data / "round-2.yaml"))
    assert capsys.readouterr().out.strip() == str(adapter.path)
    # With the base as the reference of all rounds they are what they were.
    perpo("iterate", "--config", str(file), "--set", "rounds.reference=base")
    fixed = open_version(data / "round-2" / "reference" / "train")
    assert fixed.manifest["settings"]["model"] == base["model"]
    logps = logps_of(fixed.path)
    assert all(logps[prompt] == pytest.approx(before[prompt], abs=1e-4) for prompt in kept)
    *_, third = open_version(data / "rounds" / "default").table().to_pylist()
    assert third["adapter_sha256"] != second["adapter_sha256"]
