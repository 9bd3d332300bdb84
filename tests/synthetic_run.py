"""A small finished run on disk, made through the artifact API without a model.

Answers are drawn around the truth: each method is right with a probability of its own, so the
report has a true effect to show. Scoring, filtering and measuring are the real stages.
"""

import io
import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from perpo_pipeline.answers.boxes import REFERRING_PROMPT, format_box
from perpo_pipeline.answers.settings import Reading
from perpo_pipeline.config.evaluations import Evaluation
from perpo_pipeline.config.fingerprints import STAGE_VERSIONS, stage_version
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.config.sources import SEVERAL, list_sources
from perpo_pipeline.config.train import TrainSettings
from perpo_pipeline.evaluate.summarise import summarise
from perpo_pipeline.filter.filter_lists import filter_lists
from perpo_pipeline.prepare.entries import prompt_id
from perpo_pipeline.rewards.scoring import score_samples
from perpo_pipeline.run import Run, make
from perpo_pipeline.score.score_answers import score
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.writing import Recipe, Writer
from perpo_pipeline.testbed import TESTBED_VERSION
from perpo_pipeline.testbed.pages import PAGE_PROMPT, page_example
from perpo_pipeline.vlm.images import image_sha256

SIZE = (64, 48)
RIGHT = {"base": 0.45, "sft": 0.7, "dpo": 0.65, "lipo": 0.75, "lipo-lambda": 0.75, "perpo": 0.9}
METHODS = ("perpo", "sft", "dpo")
BOTH = "both"
Row = dict[str, Any]


def synthetic_config(
    root: Path,
    *,
    num_prompts: int = 40,
    task: str = "grounding",
    seeds: tuple[int, ...] = (0,),
    methods: tuple[str, ...] = METHODS,
    splits: tuple[str, ...] = ("test",),
    out_of_domain: tuple[str, ...] = (),
    min_margin: float | None = None,
    by: tuple[str, ...] = (),
    **report: Any,
) -> RunConfig:
    """The configuration of a synthetic run; `report` has settings of the report section."""
    source = {"source": "testbed", "num_prompts": num_prompts}
    pages = source | {"task": "ocr"}
    min_margins: Any = {"grounding": 0.6, "ocr": 0.2}
    return RunConfig.model_validate(
        {
            "run": "synthetic",
            "data_root": str(root),
            "prepare": {
                "train": [source, pages] if task == BOTH else source,
                **dict.fromkeys(splits, source),
            },
            "sample": {"num_samples": 6},
            "filter": {"min_margin": min_margin or min_margins.get(task, min_margins)},
            "train": {"methods": {name: {} for name in methods}, "seeds": list(seeds)},
            "eval": {
                "splits": list(splits),
                "out_of_domain": list(out_of_domain),
                "by": list(by),
                "condition_prompts": max(2, num_prompts // 2),
            },
            "report": {"title": "PerPO on drawn boxes", "num_resamples": 500, **report},
        }
    )


def make_synthetic_run(
    root: Path,
    *,
    task: str = "grounding",
    expression: str | None = None,
    pages: bool = False,
    right: Mapping[str, float] = RIGHT,
    **config: Any,
) -> Run:
    """Write all artifacts that the report needs, and return the run.

    `task`: of BOTH, each training prompt about a box is followed by one about a text.
    `expression` is the question (with `{index}`), `right` the probability that a method is right.
    `pages`: the images are pages of the testbed, and wrong answers have lines in a wrong place.
    """
    run = Run(synthetic_config(root, task=task, **config), quiet=True)
    for split in run.config.prepare:
        prepare_synthetic(run, split, task=task, expression=expression, pages=pages)
    sample_synthetic(run)
    score(run, "train")
    filter_lists(run, "train")
    for name in run.config.train.variants():
        train_synthetic(run, name)
    evaluate_synthetic(run, run.config.eval_models(), right)
    return run


def prepare_synthetic(
    run: Run,
    split: str,
    *,
    task: str = "grounding",
    expression: str | None = None,
    pages: bool = False,
) -> Version:
    """Write the prompts of one split."""
    sources = list_sources(run.config.prepare[split])
    tasks = [task] if task != BOTH else ["grounding", "ocr"][: len(sources)]
    rows = [
        _page(split, i, expression or PAGE_PROMPT)
        if pages
        else _prompt(split, i, tasks[i % len(tasks)], expression or "box number {index}")
        for i in range(sum(one.num_prompts for one in sources))
    ]
    rows_sha256 = sha256(repr(rows).encode()).hexdigest()
    facts = {"testbed_version": TESTBED_VERSION}
    several = {"source": SEVERAL, "of": [facts | {"task": one.task} for one in sources]}
    each = facts if len(sources) == 1 else several
    settings = {"rows_sha256": rows_sha256, **each}
    recipe = Recipe("prompts", split, "prepare", STAGE_VERSIONS["prompts"], settings)
    return _write(run, recipe, rows)


def train_synthetic(run: Run, name: str) -> None:
    """Write the adapter of a variant, trained on the lists in use."""
    _write_adapter(run, name, run.config.train.variants()[name])


def evaluate_synthetic(run: Run, models: Iterable[str], right: Mapping[str, float] = RIGHT) -> None:
    """Write the predictions and metrics of these models with the adapters in use."""
    for asked in run.config.evaluations():
        name = asked.model
        if name in models:
            method = "base" if name == "base" else run.config.train.variants()[name].method
            write_evaluation(run, asked, 0.05 if asked.image else right[method])


def _write(run: Run, recipe: Recipe, rows: list[Row]) -> Version:
    def work(writer: Writer) -> None:
        writer.write_part(0, rows)

    return make(run, recipe, work)


def _prompt(split: str, index: int, task: str, expression: str) -> Row:
    """Two prompts share one image, one for each of its two boxes."""
    rng = np.random.default_rng([index // 2, *split.encode()])
    boxes = [_random_box(rng), _random_box(rng)]
    image = Image.new("RGB", SIZE, (235, 238, 240))
    for box, colour in zip(boxes, ("#cc4444", "#4466cc"), strict=True):
        ImageDraw.Draw(image).rectangle(box, fill=colour)
    sink = io.BytesIO()
    image.save(sink, format="PNG")
    grounding = task == "grounding"
    question = expression.format(index=index)
    return {
        "prompt_id": prompt_id("drawn", split, str(index)),
        "dataset": "drawn-boxes",
        "split": split,
        "task": task,
        "source_row": str(index),
        "place": f"drawn, box {index}",
        "image": {"bytes": sink.getvalue(), "path": None},
        "image_sha256": image_sha256(sink.getvalue()),
        "image_notes": [],
        "width": SIZE[0],
        "height": SIZE[1],
        "prompt": REFERRING_PROMPT.format(expression=question) if grounding else question,
        "gt_text": None if grounding else f"the quick brown fox {index}",
        "gt_box": boxes[index % 2] if grounding else None,
        "gt_boxes": None,
        "gt_polygon": None,
        "gt_point": None,
        "extra": json.dumps({"colour": ["red", "blue"][index % 2]}) if index else None,
    }


def _page(split: str, index: int, expression: str) -> Row:
    """A page of the testbed as a prompt."""
    page = page_example(len(split), index)
    sink = io.BytesIO()
    page.image.save(sink, format="PNG")
    width, height = page.image.size
    return {
        **_prompt(split, index, "ocr", expression),
        "dataset": "drawn-pages",
        "place": f"drawn, page {index}",
        "image": {"bytes": sink.getvalue(), "path": None},
        "image_sha256": image_sha256(sink.getvalue()),
        "width": width,
        "height": height,
        "gt_text": page.text,
        "extra": json.dumps({"columns": page.columns}),
    }


def misread(text: str, rng: np.random.Generator) -> str:
    """A page read wrong: a line is skipped, repeated or swapped, and look-alikes are confused."""
    lines = text.split("\n")
    at = int(rng.integers(len(lines) - 1))
    changed = [
        lines[:at] + lines[at + 1 :],
        [*lines[: at + 1], *lines[at:]],
        [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]],
    ]
    wrong = "\n".join(changed[int(rng.integers(3))])
    looks = str.maketrans("O0I1S5B8", "0O1I5S8B")
    return "".join(c.translate(looks) if rng.random() < 0.3 else c for c in wrong)


def _random_box(rng: np.random.Generator) -> list[float]:
    x, y = rng.uniform(2, 34), rng.uniform(2, 24)
    return [float(v) for v in (x, y, x + rng.uniform(10, 26), y + rng.uniform(10, 20))]


def _answer(row: Row, probability: float, rng: np.random.Generator) -> str:
    """A nearly true answer with the given probability, else one far off or without a box."""
    is_right, fails = rng.random() < probability, rng.random() < 0.15
    if row["dataset"] == "drawn-pages":
        text = str(row["gt_text"])
        return text if is_right else misread(misread(text, rng) if fails else text, rng)
    if row["task"] != "grounding":
        return str(row["gt_text"]) if is_right else str(row["gt_text"])[: rng.integers(3, 15)]
    if not is_right and fails:
        return "I cannot see it."
    shift = rng.normal(0, 1.0, 4) if is_right else rng.uniform(9, 16, 4)
    box = [float(v) for v in np.clip(np.array(row["gt_box"]) + shift, 0, SIZE * 2)]
    return format_box((box[0], box[1], box[2], box[3]), "llava", frame="full", image_size=SIZE)


def sample_synthetic(run: Run, seed: int = 1) -> Version:
    """Write the samples of the prompts in use, drawn around the truth; `seed` is in no setting."""
    prompts = run.latest("prompts", "train")
    rows = []
    for i, prompt in enumerate(prompts.table().to_pylist()):
        rng = np.random.default_rng([seed, i])
        probability = rng.choice([0.0, 0.5, 1.0], p=[0.2, 0.6, 0.2])
        for sample_id in range(run.config.sample.num_samples):
            answer = _answer(prompt, probability, rng)
            rows.append(
                {
                    "prompt_id": prompt["prompt_id"],
                    "sample_id": sample_id,
                    **_completion(answer),
                    "seed": i,
                    "sampler_logprob": -1.0,
                }
            )
    settings = run.config.sample.result_settings()
    notes = {"model_id": run.config.model.id}
    version = STAGE_VERSIONS["samples"]
    recipe = Recipe("samples", "train", "sample", version, settings, {"prompts": prompts}, notes)
    return _write(run, recipe, rows)


def _completion(answer: str) -> Row:
    return {
        "completion": answer,
        "completion_token_ids": [ord(c) for c in answer],
        "finish_reason": "stop",
        "resized": SIZE,
    }


def _write_adapter(run: Run, name: str, settings: TrainSettings) -> Version:
    rng = np.random.default_rng(list(name.encode()))
    ranked = settings.method != "sft"
    rows: list[Row] = []
    for step in range(1, 61):
        done = step / 60
        rows.append(
            {
                "step": step,
                "epoch": done,
                "learning_rate": 1e-4 * (1 - done),
                "grad_norm": 1.0,
                "loss": (0.69 if ranked else 2.0) * np.exp(-done) + rng.normal(0, 0.03),
                "reward_accuracy": min(1, 0.5 + done / 2 + rng.normal(0, 0.03)) if ranked else None,
                "implicit_margin": rng.normal(3, 0.3) * done if ranked else None,
                "best_logp": rng.normal(-4, 0.2) + done if ranked else None,
                "worst_logp": None,
                "kl": None,
                "mfu": None,
                "tokens": 500,
                "tokens_per_s": 1000.0,
                "peak_memory_gib": None,
            }
        )
    inputs = {"preferences": run.latest("preferences", "train")}
    counted = settings.result_settings()
    version = stage_version("adapter", "train", counted)
    recipe = Recipe("adapter", name, "train", version, counted, inputs)
    return _write(run, recipe, rows)


def write_evaluation(run: Run, asked: Evaluation, probability: float) -> Version:
    """Write the predictions and metrics of one evaluation, right with this probability."""
    variant = asked.name
    prompts = run.latest("prompts", asked.split)
    rows = prompts.table().to_pylist()
    shown = rows[: run.config.eval.condition_prompts] if asked.image else rows
    rng = np.random.default_rng(list(variant.encode()))
    answers = [_answer(row, probability, rng) for row in shown]
    samples = [
        {"prompt_id": row["prompt_id"], "sample_id": 0, "completion": answer}
        for row, answer in zip(shown, answers, strict=True)
    ]
    scored = score_samples(
        _table(samples), prompts.table(), reward="auto", reading=Reading()
    ).to_pylist()
    predictions = [
        {
            "prompt_id": row["prompt_id"],
            "image_prompt_id": row["prompt_id"],
            **_completion(answer),
            **{key: measured[key] for key in ("reward", "parse_ok", "box")},
        }
        for row, answer, measured in zip(shown, answers, scored, strict=True)
    ]
    inputs = {"prompts": prompts}
    if asked.model != "base":
        inputs["adapter"] = run.latest("adapter", asked.model)
    counted = run.config.eval.result_settings()
    settings = {**counted, "variant": variant, "probability": probability}
    version = STAGE_VERSIONS["predictions"]
    recipe = Recipe("predictions", variant, "eval", version, settings, inputs)
    made = _write(run, recipe, predictions)
    measured = summarise(made.table(), prompts.table(), by=run.config.eval.by)
    counted = {"by": run.config.eval.by} if run.config.eval.by else {}
    recipe = Recipe("metrics", variant, "eval", version, counted, {"predictions": made})
    return _write(run, recipe, measured)


def _table(rows: list[Row]) -> Any:
    import pyarrow as pa

    return pa.Table.from_pylist(rows)
