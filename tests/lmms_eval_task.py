"""A small task of our own for lmms-eval: boxes in rendered scenes, from files on this machine.

python tests/lmms_eval_task.py FOLDER NUMBER      writes it; then --include_path FOLDER
"""

import json
import sys
from pathlib import Path

from perpo_pipeline.answers.boxes import REFERRING_PROMPT
from perpo_pipeline.testbed.scenes import referring_example

TASK = "perpo_scenes"
SEED = 7
SETTINGS = """dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/scenes.jsonl
task: {task}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: prompt
doc_to_target: expression
generation_kwargs:
  max_new_tokens: 32
  temperature: 0
  do_sample: false
process_results: !function utils.process_results
metric_list:
  - metric: iou
    aggregation: mean
    higher_is_better: true
  - metric: right
    aggregation: mean
    higher_is_better: true
  - metric: answered
    aggregation: !function utils.per_cent_answered
    higher_is_better: true
metadata:
  version: 1.0
"""
FUNCTIONS = """import re

from PIL import Image


def doc_to_visual(doc):
    return [Image.open(doc["image"]).convert("RGB")]


def process_results(doc, results):
    numbers = [float(number) for number in re.findall(r"[0-9.]+", results[0])]
    iou = intersection_over_union(numbers, doc["gt"]) if len(numbers) == 4 else 0.0
    answered = {"question_id": doc["question_id"], "score": len(numbers) == 4}
    return {"iou": iou, "right": float(iou >= 0.5), "answered": answered}


def intersection_over_union(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (areas - width * height)


def per_cent_answered(items):
    return 100.0 * sum(item["score"] for item in items) / len(items)
"""


def write_task(folder: Path, number: int) -> Path:
    """Write the task with its scenes; returns `scenes.jsonl`, which also has our own keys."""
    folder = folder.resolve()
    (folder / "images").mkdir(parents=True)
    lines = []
    for index in range(number):
        example = referring_example(SEED, index)
        image = folder / "images" / f"{index}.png"
        example.image.save(image)
        sides = example.image.size * 2
        row = {
            "question_id": f"scene-{index}",
            "image": str(image),
            "expression": example.expression,
            "prompt": REFERRING_PROMPT.format(expression=example.expression),
            "gt_box": list(example.box_xyxy_px),
            "gt": [value / side for value, side in zip(example.box_xyxy_px, sides, strict=True)],
        }
        lines.append(json.dumps(row))
    (folder / f"{TASK}.yaml").write_text(SETTINGS.format(folder=folder, task=TASK))
    (folder / "utils.py").write_text(FUNCTIONS)
    (folder / "scenes.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "scenes.jsonl"


if __name__ == "__main__":
    write_task(Path(sys.argv[1]), int(sys.argv[2]))
