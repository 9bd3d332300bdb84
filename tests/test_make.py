"""`make all` as a user runs it: twice, after a changed setting, and after it is changed back."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(sys.prefix)
CONFIG = """
run: m
data_root: {data}
model: {{id: testbed, dtype: float32, device: cpu}}
prepare:
  train: {{source: testbed, num_prompts: 16}}
  test: {{source: testbed, num_prompts: 8}}
sample: {{num_samples: 6, max_new_tokens: 24}}
filter: {{min_margin: {margin}}}
train: {{batch_size: 8, lora: {{rank: 2, alpha: 4}}, methods: {{perpo: }}}}
eval: {{max_new_tokens: 24, conditions: []}}
report: {{num_resamples: 100, pictures: 1}}
"""
EVERY_STAGE = ("prompts", "samples", "scores", "preferences", "adapter", "metrics", "report")


def make_all(config: Path) -> tuple[str, float]:
    command = [
        "make",
        "--no-print-directory",
        "-C",
        str(ROOT),
        "all",
        "RUN=test-make",
        f"CONFIG={config}",
        f"VENV={VENV}",
    ]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr, time.monotonic() - start


def versions(data: Path) -> dict[str, int]:
    return {name: len(list(data.glob(f"m/{name}/*/*/manifest.json"))) for name in EVERY_STAGE}


@pytest.mark.slow
@pytest.mark.skipif(
    not (VENV / ".installed").exists() or shutil.which("make") is None,
    reason="not run by `make test`: this Python is not the one that the Makefile set up",
)
def test_only_what_follows_from_a_changed_setting_is_made_again(tmp_path: Path) -> None:
    data, config = tmp_path / "data", tmp_path / "m.yaml"

    def write(margin: float) -> None:
        config.write_text(CONFIG.format(data=data, margin=margin))

    write(0.01)
    try:
        make_all(config)
        once = versions(data)
        assert once == {name: 1 for name in EVERY_STAGE} | {"prompts": 2, "metrics": 2}

        said, seconds = make_all(config)
        assert "nothing was run" in said and seconds < 20
        assert versions(data) == once

        time.sleep(1.1)  # Make compares whole seconds on some file systems
        write(0.02)
        make_all(config)
        changed = versions(data)
        assert changed == once | {"preferences": 2, "adapter": 2, "metrics": 3, "report": 2}

        time.sleep(1.1)
        write(0.01)
        said, _ = make_all(config)
        assert versions(data) == changed
        assert " rows in " not in said and said.count("up to date") >= 7
    finally:
        plan = str(config).replace("/", "_")
        (ROOT / f"data/.plans/{plan}.mk").unlink(missing_ok=True)
