"""A folder of pages and a PDF go through every stage, as docs/data.md describes it."""

import json
from pathlib import Path

import pytest
from own_pages import write_image, write_pdf
from tiny_models import save_tiny_llava

from perpo_pipeline import cli
from perpo_pipeline.inference.long_truths import TRUTHS_TOO_LONG, find_long_truths
from perpo_pipeline.store.artifacts import open_version
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_without_weights

LIMIT = 16
LONG = "This page says much more than an answer can hold here."
CONFIG = f"""
run: mine
model: {{id: model, dtype: float32, device: cpu}}
prepare:
  train: {{source: pages, path: scans, share: [0, 0.7], dpi: 40}}
  test: {{source: pages, path: scans, share: [0.7, 1], dpi: 40}}
sample: {{num_samples: 4, temperature: 1.5, max_new_tokens: {LIMIT}, batch_size: 4}}
filter: {{min_margin: 0.0001}}
train: {{batch_size: 2, lora: {{rank: 1, alpha: 2}}, methods: {{perpo: {{}}}}}}
eval: {{max_new_tokens: {LIMIT}, batch_size: 4, conditions: []}}
report: {{num_resamples: 100}}
"""


def test_a_folder_with_a_pdf_goes_through_every_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(9):
        write_image(Path("scans") / f"{number}.png", f"12{number}")
    write_pdf(Path("scans/report.pdf"), [["5 6"], [LONG]], inches=(6, 2))
    save_tiny_llava(Path("model"))
    Path("mine.yaml").write_text(CONFIG)
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "--config", "mine.yaml"])
    said = capsys.readouterr().err
    assert not ended.value.code, said

    data = Path("data/mine")
    splits = {name: open_version(data / "prompts" / name) for name in ("train", "test")}
    texts = {
        row["place"]: (name, row["gt_text"])
        for name, one in splits.items()
        for row in one.table().to_pylist()
    }
    assert len(texts) == 11 and texts["4.png"][1] == "124"
    (split, text), (same, long) = texts["report.pdf#1"], texts["report.pdf#2"]
    assert (text, long) == ("5 6", LONG), "the text layer reads back"
    assert split == same, "all pages of a PDF are in one split"

    samples = open_version(data / "samples/train").manifest
    assert samples["rows"] == 4 * splits["train"].manifest["rows"]
    scores = open_version(data / "scores/train").table()["reward"].to_pylist()
    assert all(0 <= reward <= 1 for reward in scores) and len(set(scores)) > 1
    kept = open_version(data / "preferences/train")
    assert kept.manifest["rows"] > 0 and set(kept.table()["task"].to_pylist()) == {"ocr"}
    for model in ("base", "perpo"):
        measured = open_version(data / "metrics" / f"{model}@test").table().to_pylist()
        values = {row["name"]: row["value"] for row in measured if row["dataset"] == "all"}
        assert 0 <= values["edit_distance"] <= 1 and {"f1", "bleu"} <= set(values)

    # The one long text is counted where its page is: in sampling or in every evaluation.
    vlm = load_without_weights(resolve_model("model"))
    rows = splits[split].table().to_pylist()
    found = find_long_truths(vlm, rows, LIMIT)
    assert (found.count, found.texts) == (1, len(rows)) and "report.pdf#2" in found.place
    assert find_long_truths(vlm, rows, found.longest).count == 0
    assert find_long_truths(vlm, rows, found.longest - 1).count == 1
    answers = {
        "train": ["samples/train"],
        "test": [f"predictions/{m}@test" for m in ("base", "perpo")],
    }
    for name, folders in answers.items():
        for folder in folders:
            counts = open_version(data / folder).manifest["counts"]
            assert counts[TRUTHS_TOO_LONG] == (name == split), json.dumps(counts)
    section = "sample" if split == "train" else "eval"
    warning = found.sentence(f"{section}.max_new_tokens")
    assert f"set {section}.max_new_tokens: {found.longest + 1}" in warning
    stages = [line for line in said.splitlines() if warning in line]
    assert stages[0].startswith(f"prepare {split}: ") and len(stages) >= 2
