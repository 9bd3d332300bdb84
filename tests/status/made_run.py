"""A finished run of empty artifacts, every manifest as its stage writes it, in half a second.

The settings are those of the stages' own function, `counted_settings`. All of it was made on
another machine: with vLLM in bfloat16, where the file says `auto`.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perpo_pipeline.answers.formats import get_box_format
from perpo_pipeline.config.file import load_config
from perpo_pipeline.config.fingerprints import (
    box_settings,
    counted_settings,
    reading_settings,
    report_facts,
    stage_version,
)
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.run import Run, make
from perpo_pipeline.status.graph import Key, Node, nodes
from perpo_pipeline.store.artifacts import Version, input_of
from perpo_pipeline.store.atomic import file_sha256
from perpo_pipeline.store.writing import Recipe, Writer
from perpo_pipeline.testbed import testbed_settings
from perpo_pipeline.vlm.chat_settings import counted_chat_settings
from perpo_pipeline.vlm.files import compute_identity, resolve_model
from perpo_pipeline.vlm.image_limits import limits_of

FILE = """
run: r
data_root: {root}
prepare:
  train: {{source: jsonl, path: {root}/rows.jsonl, task: grounding, per_dataset: 2}}
  test: {{source: testbed, num_prompts: 4}}
sample: {{num_samples: 4}}
train:
  methods:
    sft: {{}}
    perpo: {{beta: 0.5}}
eval: {{conditions: [blank-image]}}
"""


def write_file(root: Path) -> Path:
    """The run's YAML file, and the rows that it reads."""
    (root / "rows.jsonl").write_text("{}\n")
    (root / "r.yaml").write_text(FILE.format(root=root))
    return root / "r.yaml"


def make_run(config: RunConfig) -> Run:
    """Make every artifact of a run."""
    run = Run(config, quiet=True)
    for node in nodes(config):
        make_node(run, node.key)
    return run


def make_node(run: Run, key: Key) -> Version:
    """Make one artifact, as its stage would."""
    node = next(node for node in nodes(run.config) if node.key == key)
    inputs = _inputs(run, node)
    settings = settings_of(run.config, node)
    recipe = Recipe(
        node.artifact,
        node.variant,
        node.stage,
        stage_version(node.artifact, node.stage, settings),
        json.loads(json.dumps(settings)),
        inputs,
        notes={"model_id": run.config.model.id},
    )
    return make(run, recipe, lambda writer: _write_nothing(writer))


def _write_nothing(writer: Writer) -> None:
    pass


def _inputs(run: Run, node: Node) -> dict[str, Version]:
    opened = run.all_latest(node.needs)
    several = node.artifact == "report"
    found = {f"{v.artifact}/{v.variant}" if several else v.artifact: v for v in opened}
    if node.artifact in ("scores", "preferences", "adapter"):
        found["prompts"] = input_of(opened[0], "prompts")
    return found


def settings_of(config: RunConfig, node: Node) -> Mapping[str, Any]:
    """The settings that the node's stage counts."""
    name, model = node.artifact, config.model
    files = {
        "model": _identity(model.id),
        "dtype": "bfloat16" if model.dtype == "auto" else model.dtype,
        "preprocess": model.preprocess,
        **limits_of(model).given(),
        **counted_chat_settings(model),
        **({} if model.quantization is None else {"quantization": model.quantization}),
        **({"trust_remote_code": True} if model.trust_remote_code else {}),
    }
    if name == "prompts":
        return _prompts(config, node.variant)
    if name == "samples":
        found = {"backend": _backend(config.sample.backend), "seed": config.seed, **files}
        return counted_settings(name, config.sample, found)
    if name == "scores":
        weights = {"reward": config.score.weights(), "own_rewards": {}}
        return counted_settings(name, config.score, {**weights, **reading_settings(model)})
    if name == "preferences":
        return counted_settings(name, config.filter, {})
    if name == "adapter":
        section = config.train.variants()[node.variant]
        return counted_settings(name, section, {**files, **box_settings(model)})
    if name == "predictions":
        image = "blank" if "blank" in node.variant else "matching"
        found = {"backend": _backend(config.eval.backend), "image": image, "reward": {"auto": 1.0}}
        return counted_settings(name, config.eval, {**found, **reading_settings(model), **files})
    if name == "report":
        found = {"run": config.run, "model": model.id, "out_of_domain": config.eval.out_of_domain}
        return counted_settings(name, config.report, {**found, **report_facts(config)})
    return counted_settings(name, None, {"metrics": ["ap50"], "by": config.eval.by})


@functools.cache
def _identity(model_id: str) -> str:
    return compute_identity(resolve_model(model_id))


def _backend(configured: str) -> str:
    return "vllm" if configured == "auto" else configured


def _prompts(config: RunConfig, split: str) -> Mapping[str, Any]:
    source: Any = config.prepare[split]
    if source.source == "testbed":
        facts = testbed_settings(config.seed, split, source.num_prompts, source.task)
    else:
        facts = {
            "file_sha256": file_sha256(config.data_root / "rows.jsonl"),
            "image_root": str((source.image_root or source.path.parent).resolve()),
            "instruction": get_box_format(config.model.box_format).instruction,
        }
        if source.per_dataset is not None:
            facts["seed"] = config.seed
    return counted_settings("prompts", source, {"split": split, **facts})


def configured(file: Path, **changed: Any) -> RunConfig:
    """The file's configuration with changed settings, `__` for the dots of a key."""
    return load_config(file, {key.replace("__", "."): value for key, value in changed.items()})
