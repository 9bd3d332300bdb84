"""A small real sweep, killed by SIGKILL at three random moments, ends with the rows of another."""

import json
import os
import random
import signal
from pathlib import Path

import pytest
from forked_commands import ForkedCommand
from killing import kill_at_random
from test_kill import assert_same

from perpo_pipeline.store.artifacts import open_version

RUN = """
run: k
model: {id: testbed, dtype: float32, device: cpu}
prepare:
  train: {source: testbed, num_prompts: 12}
  validation: {source: testbed, num_prompts: 6}
  test: {source: testbed, num_prompts: 6}
sample: {num_samples: 4, max_new_tokens: 24, temperature: 0.9, prompts_per_part: 4}
filter: {min_margin: 0.05}
train:
  batch_size: 2
  checkpoint_every: 1
  learning_rate: 1.0e-3
  lora: {rank: 4, alpha: 8}
  methods: {sft: {}, perpo: {}}
eval: {max_new_tokens: 24, prompts_per_part: 3}
"""
SWEEP = """
sweep: k
config: run.yaml
grids:
  - methods: [base, sft]
  - methods: [perpo]
    parameters: {train.beta: [0.5, 1.0]}
seeds: [0, 1]
select_seeds: [0]
select_on: validation
report_on: test
"""


@pytest.mark.slow
def test_a_real_sweep_killed_at_three_random_moments_ends_with_the_same_rows(
    tmp_path: Path,
) -> None:
    for name in ("uninterrupted", "killed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.yaml").write_text(RUN)
        (tmp_path / name / "sweep.yaml").write_text(SWEEP)
    seed, output, err = random.randrange(10**6), tmp_path / "outcome.json", tmp_path / "err"
    finished = ForkedCommand(
        kill_at_random,
        [["sweep", "sweep.yaml"], seed, str(output)],
        folder=tmp_path,
        environment=os.environ,
        out=tmp_path / "out",
        err=err,
    )
    assert finished.wait() == 0, err.read_text()
    outcome = json.loads(output.read_text())
    print(f"seed {seed}: killed at events {outcome['moments']} of {outcome['events']}")
    assert outcome["codes"] == [0, *[-signal.SIGKILL] * 3, 0], f"seed {seed}"
    runs = [tmp_path / name / "data" / "k" for name in ("killed", "uninterrupted")]
    made = [sorted(run.glob("*/*/*/manifest.json")) for run in runs]
    places = [[file.relative_to(run) for file in own] for run, own in zip(runs, made, strict=True)]
    assert places[0] == places[1] and len(places[0]) == 31
    for killed, whole in zip(*made, strict=True):
        assert_same(open_version(killed.parent), open_version(whole.parent))
