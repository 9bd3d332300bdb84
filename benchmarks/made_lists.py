"""Lists that `perpo train` reads, made without sampling: rendered scenes, answers around the truth.

They need neither Polars nor a sampled model, so a bare machine can train on them. The answers of a
list are the true box, moved by more and more; their rewards are the IoU with it.
"""

from typing import Any

import numpy as np

from perpo_pipeline.answers.boxes import clip_to_frame, format_box
from perpo_pipeline.config.fingerprints import STAGE_VERSIONS
from perpo_pipeline.prepare.testbed import render_prompts
from perpo_pipeline.rewards.grounding import iou_xyxy
from perpo_pipeline.run import Run, make
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.writing import Recipe, Writer
from perpo_pipeline.testbed import testbed_settings
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_without_weights

FARTHEST = 0.6  # of the box's own size: where the last answer is
FORMAT, FRAME = "llava", "full"
Row = dict[str, Any]
Box = tuple[float, float, float, float]


def write_lists(run: Run, num_lists: int, num_answers: int) -> Version:
    """Write `prompts` and `preferences` of the split `train`; returns the preferences."""
    settings = testbed_settings(0, "train", num_lists)
    rows = list(render_prompts(settings, "train"))
    prompts = _write(
        run, Recipe("prompts", "train", "prepare", STAGE_VERSIONS["prompts"], settings), rows
    )
    vlm = load_without_weights(resolve_model("testbed"))
    rng = np.random.default_rng(0)
    lists = [_list_of(row, num_answers, vlm, rng) for row in rows]
    recipe = Recipe(
        "preferences",
        "train",
        "filter",
        STAGE_VERSIONS["preferences"],
        {"made": num_answers},
        {"prompts": prompts},
    )
    return _write(run, recipe, lists)


def _write(run: Run, recipe: Recipe, rows: list[Row]) -> Version:
    def work(writer: Writer) -> None:
        writer.write_part(0, rows)

    return make(run, recipe, work)


def _list_of(row: Row, num_answers: int, vlm: Any, rng: np.random.Generator) -> Row:
    """A row of preferences: distinct answers in descending order of reward."""
    size = (row["width"], row["height"])
    found: dict[str, float] = {}
    for number in range(50 * num_answers):
        if len(found) == num_answers:
            break
        box = _moved(row["gt_box"], FARTHEST * (number % num_answers) / num_answers, rng)
        box = clip_to_frame(box, frame=FRAME, image_size=size) or row["gt_box"]
        text = format_box(box, FORMAT, frame=FRAME, image_size=size)
        found.setdefault(text, float(iou_xyxy([box], [row["gt_box"]])[0]))
    texts = sorted(found, key=lambda text: -found[text])
    ids = [vlm.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    rewards = [found[text] for text in texts]
    return {
        "prompt_id": row["prompt_id"],
        "task": row["task"],
        "completions": texts,
        "completion_token_ids": [[*one, vlm.eos_token_ids[0]] for one in ids],
        "finish_reasons": ["stop"] * len(texts),
        "rewards": rewards,
        "parse_ok": [True] * len(texts),
        "counts": [1] * len(texts),
        "margin": max(rewards) - min(rewards),
    }


def _moved(box: Box, share: float, rng: np.random.Generator) -> Box:
    """The box, each edge moved by up to `share` of its own size."""
    x1, y1, x2, y2 = box
    dx, dy = rng.uniform(-share, share, 2) * (x2 - x1, y2 - y1)
    x3, y3, x4, y4 = (float(v) for v in (x1 + dx, y1 + dy, x2 + dx / 2, y2 + dy / 2))
    return min(x3, x4 - 1), min(y3, y4 - 1), x4, y4
