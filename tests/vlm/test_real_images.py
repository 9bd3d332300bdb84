"""The 4 COCO photos with their 44 RefCOCO expressions go through every stage."""

import html
import json
from pathlib import Path

import pytest

from perpo_pipeline import cli
from perpo_pipeline.store.artifacts import open_version

CONFIG = """
run: real
model: {{id: testbed, dtype: float32, device: cpu, preprocess: pad}}
prepare:
  train: {{source: jsonl, path: refs.jsonl, image_root: {images}, task: grounding}}
  test: {{source: jsonl, path: refs.jsonl, image_root: {images}, task: grounding}}
sample: {{num_samples: 4, max_new_tokens: 24}}
filter: {{min_margin: 0.0}}
train:
  batch_size: 8
  lora: {{rank: 2, alpha: 4}}
  methods: {{sft: , perpo: }}
eval: {{max_new_tokens: 24, allow_train_images: true, condition_prompts: 8}}
report: {{num_resamples: 200, pictures: 4, lists: 0}}
"""


def to_jsonl(folder: Path) -> str:
    """The references in the documented form: `bbox_xywh` becomes xyxy, nothing else changes."""
    rows = []
    for number, ref in enumerate(json.loads((folder / "refs.json").read_text())):
        x, y, w, h = ref["bbox_xywh"]
        rows.append(
            {
                "image": ref["image"],
                "expression": ref["expression"],
                "id": str(number),
                "dataset": ref["dataset_split"],
                "gt_box": [x, y, x + w, y + h],
            }
        )
    return "\n".join(json.dumps(row) for row in rows)


@pytest.mark.slow
def test_real_photos_go_through_all_stages(
    realdata: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = realdata / "refcoco_images"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "refs.jsonl").write_text(to_jsonl(images))
    (tmp_path / "real.yaml").write_text(CONFIG.format(images=images))
    for stage in ("prepare", "sample", "score", "filter", "train", "eval", "report"):
        with pytest.raises(SystemExit) as exit_:
            cli.main([stage, "--config", "real.yaml", "--quiet"])
        assert not exit_.value.code, stage
    prompts = open_version(tmp_path / "data/real/prompts/test")
    sizes = set(zip(*prompts.table(columns=["width", "height"]).to_pydict().values(), strict=True))
    assert prompts.manifest["rows"] == 44 and len(sizes) >= 3
    assert open_version(tmp_path / "data/real/scores/train").manifest["rows"] == 44 * 4
    metrics = open_version(tmp_path / "data/real/metrics/perpo@test").table().to_pylist()
    counted = {row["dataset"]: row["n"] for row in metrics if row["name"] == "ap50"}
    assert counted.pop("all") == sum(counted.values()) == 44
    page = (open_version(tmp_path / "data/real/report/default").path / "report.html").read_text()
    lines = (tmp_path / "refs.jsonl").read_text().splitlines()
    expressions = {row["expression"] for row in map(json.loads, lines)}
    shown = {e for e in expressions if html.escape(e, quote=True) in page}
    assert 1 <= len(shown) <= 4, "the page shows pictures of these very prompts"
