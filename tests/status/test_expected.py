"""Changing a setting makes stale exactly what its stages would make anew, and what follows."""

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from status.made_run import configured, make_run, settings_of, write_file

from perpo_pipeline.config import sources
from perpo_pipeline.config.fingerprints import counts_in
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.config.section import Section
from perpo_pipeline.config.train import TrainSettings
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.run import Run
from perpo_pipeline.status.check import Check
from perpo_pipeline.status.expected import differences, show
from perpo_pipeline.store.old_rules import RULES, Rule

# Values for settings whose type does not say what another valid value is; None: left out.
OTHERS: dict[str, Any] = {
    "model.id": "llava-hf/llava-1.5-7b-hf",
    "model.revision": "v2",
    "model.max_pixels": 784,
    "model.box_format": "qwen3-vl",
    "model.box_frame": "pad",
    "model.answer": {"which": "last"},
    "model.template_date": datetime.date(2001, 1, 1),
    "model.chat_template_kwargs": {"enable_thinking": False},
    "prepare.train.path": "{folder}/other.jsonl",
    "prepare.train.image_root": "images",
    "prepare.train.columns": {"image": "file"},
    "prepare.train.task": "vqa",
    "sample.split": None,  # another graph
    "sample.top_p": 0.5,
    "sample.top_k": 5,
    "sample.num_actors": 2,
    "eval.num_actors": 2,
    "filter.list_size": 3,
    "filter.earlier": None,  # the lists there count: tests/filter/test_earlier.py
    "filter.keep_earlier": 0.5,
    "sample.base_url": "http://localhost:1/v1",
    "score.reward": "giou",
    "train.method": None,  # the methods of the run name their own
    "train.seed": None,
    "train.scope": ["language_model", "projector"],
    "train.lora": {"rank": 8},
    "train.label_smoothing": None,  # not for sft, which is one of the methods
    "train.sft_weight": None,
    "train.reference_model": None,  # its files count: tests/train/test_train_adapter.py
    "train.reference_revision": None,
    "train.deepspeed": "zero2",
    "train.log_to": ["tensorboard"],
    "train.num_workers": 1,
    "train.levers": ["lora-addmm"],
    "train.tasks": ["grounding"],
    "train.checkpoint_every": 7,
    "rounds.num_prompts": 7,
    "rounds.keep_lists": 0.5,
    **dict.fromkeys(("prepare.train.images_per_prompt", "prepare.test.images_per_prompt"), 2),
    "filter.min_margin": 0.4,
    "filter.max_margin": 0.9,
    "eval.splits": None,
    "eval.models": None,
    "eval.conditions": None,
    "eval.condition_splits": None,
    "eval.out_of_domain": ["test"],
    "report.title": "Another",
    "run": None,
    "data_root": None,
}
NAMES = ("other", "more")


def every_setting() -> Iterator[tuple[str, Any]]:
    """Each dotted key with its field."""
    sections: dict[str, Any] = {**dict.fromkeys(("prepare.train",), sources.TableSource)}
    sections["prepare.test"], sections["train"] = sources.TestbedSource, TrainSettings
    for name, field in RunConfig.model_fields.items():
        if name in ("prepare", "train"):
            continue
        if isinstance(field.annotation, type(Section)):
            sections[name] = field.annotation
        else:
            yield name, field
    for name, section in sections.items():
        for setting, field in section.model_fields.items():
            if setting != "source":
                yield f"{name}.{setting}", field


def another(value: Any, kind: Any) -> Any:
    """A value of the same type that differs."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 if value else 0.25
    options = [one for part in (kind, *get_args(kind)) for one in _literals(part)]
    if options:
        return next(one for one in options if one != value)
    inner = [part for part in (kind, *get_args(kind)) if part in (int, float, bool)]
    if value is None and inner:
        return {int: 7, float: 0.5, bool: True}[inner[0]]
    if value == []:
        return ["nfc"]
    return "other"


def _literals(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) is Literal else ()


def current_value(config: RunConfig, key: str) -> Any:
    if key.startswith("train."):
        return getattr(config.train.shared, key.partition(".")[2])
    value: Any = config
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_file(tmp_path_factory.mktemp("made"))
    make_run(configured(path))
    return path


NEEDS: dict[str, dict[str, Any]] = {
    "train.activation_offload": {"train__gradient_checkpointing": True},  # no result changes either
    "filter.keep_earlier": {"filter__earlier": "lists"},
}
KEYS = {key: field for key, field in every_setting() if OTHERS.get(key, key) is not None}


@pytest.mark.parametrize("key", KEYS)
def test_a_setting_makes_stale_what_it_counts_in_and_what_follows(file: Path, key: str) -> None:
    before = configured(file)
    value = (
        OTHERS[key] if key in OTHERS else another(current_value(before, key), KEYS[key].annotation)
    )
    if isinstance(value, str):
        value = value.replace("{folder}", str(file.parent))
    after = configured(file, **{key.replace(".", "__"): value} | NEEDS.get(key, {}))
    check = Check(after)
    own = {k for k in check.nodes if any(r.kind == "setting" for r in check.in_use(k).reasons)}  # type: ignore[union-attr]
    changed = {
        node.key
        for node in check.nodes.values()
        if key != "model.id" and settings_of(before, node) != settings_of(after, node)
    }
    if key == "model.id":  # another model cannot be hashed here
        changed = {k for k in check.nodes if k[0] in counts_in(key)}
    assert own == changed
    assert {artifact for artifact, _ in own} <= set(counts_in(key)) | {"report"}
    stale = {k for k in check.nodes if check.find([k]).silent}
    follows = {k for k in check.nodes if k in own or _needs_any(check, k, own)}
    assert stale == follows


def _needs_any(check: Check, key: Any, changed: set[Any]) -> bool:
    return any(n in changed or _needs_any(check, n, changed) for n in check.nodes[key].needs)


def test_a_setting_that_did_not_exist_had_the_value_of_that_time(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(file)
    manifest = Check(config).in_use(("preferences", "train")).manifest  # type: ignore[union-attr]
    older = {k: v for k, v in manifest["settings"].items() if k not in ("list_size", "max_lists")}
    before = {**manifest, "settings": older}
    assert differences(("preferences", "train"), before, config) == []
    edited = configured(file, filter__list_size=2, filter__max_lists=9)
    assert [str(one) for one in differences(("preferences", "train"), before, edited)] == [
        "filter.list_size null, the configuration says 2",
        "filter.max_lists 3000, the configuration says 9",
    ]
    monkeypatch.setitem(RULES, ("preferences", "filter"), Rule(neutral={"max_lists": 9}))
    assert "filter.list_size" in str(differences(("preferences", "train"), before, edited))
    assert len(differences(("preferences", "train"), before, edited)) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        ([], "[]"),
        ({"a": [1, None]}, "{a: [1, null]}"),
        (0.5, "0.5"),
    ],
)
def test_values_are_shown_as_the_file_has_them(value: Any, text: str) -> None:
    assert show(value) == text


def test_an_adapter_trained_at_another_image_size_is_refused(file: Path) -> None:
    for after in (configured(file, model__max_pixels=784), configured(file, model__max_tiles=2)):
        with pytest.raises(ArtifactError, match=r"model\.max_\w+ null, the configuration says"):
            Run(after, quiet=True).latest("adapter", "sft")
    assert Run(configured(file), quiet=True).latest("adapter", "sft")
