"""`perpo sample`: what cannot be sampled is counted under a reason, and may be repaired."""

from pathlib import Path

import pytest
from PIL import Image

from perpo_pipeline import cli
from perpo_pipeline.artifacts import open_version

CONFIG = """
run: r
model: {{id: testbed, dtype: float32, device: cpu}}
prepare:
  train: {{source: jsonl, path: data.jsonl, task: vqa}}
  test: {{source: jsonl, path: data.jsonl, task: vqa}}
sample:
  {{num_samples: 2, max_new_tokens: 4, batch_size: 1, prompts_per_part: 2,
    max_errors: {max_errors}}}
"""


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main([*arguments, "--config", "r.yaml", "--quiet"])
    return int(exit_.value.code or 0)


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four prompts are prepared; then the third one's image is damaged. Returns that image."""
    monkeypatch.chdir(tmp_path)
    lines = []
    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
        lines.append(f'{{"image": "{number}.png", "prompt": "?", "gt_text": "x"}}')
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    (tmp_path / "r.yaml").write_text(CONFIG.format(max_errors=0))
    assert run("prepare") == 0
    (tmp_path / "2.png").write_bytes(b"damaged")
    return tmp_path / "2.png"


def test_one_failure_too_many_keeps_what_is_done_and_can_be_repaired(
    broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sample") == 2
    told = capsys.readouterr().err
    assert "1 prompts cannot be sampled (max_errors 0)" in told and "has changed" in told
    assert len(list(Path("data/r/samples/train").glob("*/part-*.parquet"))) == 1
    assert run("sample") == 2, "the same fault is told again"
    Image.new("RGB", (8, 8), (2, 0, 0)).save(broken)
    assert run("sample") == 0
    assert open_version(Path("data/r/samples/train")).manifest["rows"] == 8


def test_allowed_failures_go_to_errors_with_their_reason(broken: Path) -> None:
    Path("r.yaml").write_text(CONFIG.format(max_errors=1))
    assert run("sample") == 0
    version = open_version(Path("data/r/samples/train"))
    assert version.manifest["rows"] == 6 and version.manifest["counts"]["failed"] == 1
    (error,) = version.table("errors").to_pylist()
    assert "has changed since `perpo prepare`" in error["reason"]
