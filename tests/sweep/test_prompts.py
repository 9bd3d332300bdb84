"""The prompts that choose a setting: the same for all settings, and none that is reported on."""

import json
from pathlib import Path

import pytest
from PIL import Image
from sweep.fake_stages import SWEEP

from perpo_pipeline.config.overrides import parse_set
from perpo_pipeline.config.sources import SOURCE_MODELS
from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.run import Console, NotMade, Run
from perpo_pipeline.sweep import make_steps
from perpo_pipeline.sweep.cells import CHOOSE_PROMPTS
from perpo_pipeline.sweep.run_sweep import open_sweeps, run_sweeps
from perpo_pipeline.sweep.steps import Step

RUN = """
run: small
data_root: {root}/data
prepare:
  train: {{source: testbed, num_prompts: 4}}
  validation: {{source: jsonl, path: {root}/validation.jsonl}}
  test: {{source: jsonl, path: {root}/test.jsonl}}
sample: {{num_samples: 6}}
filter: {{min_margin: 0}}
train: {{methods: {{dpo: {{beta: 0.3}}, perpo: {{beta: 0.3}}}}}}
"""


class MadeOfThem(Exception):
    """A stage began to make something of the prompts."""


@pytest.fixture(autouse=True)
def _prompts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are prepared as always, and nothing can be made of them."""

    def stop(run: Run, step: Step) -> None:
        assert run.pinned is not None
        raise NotMade if run.pinned.only_find else MadeOfThem

    stages = dict.fromkeys(make_steps.STAGES, stop)
    monkeypatch.setattr(make_steps, "STAGES", stages | {"prepare": make_steps.STAGES["prepare"]})


def sweep(folder: Path, text: str = SWEEP, *sets: str) -> None:
    (folder / "run.yaml").write_text(RUN.format(root=folder))
    (folder / "sweep.yaml").write_text(text)
    opened = open_sweeps([folder / "sweep.yaml"], [parse_set(one) for one in sets])
    [*run_sweeps(opened, Console(quiet=True))]


def write_prompts(folder: Path, split: str, *asked: tuple[str, str]) -> None:
    """A file of prompts about boxes, each with the name of its image and what is asked for."""
    rows = []
    for name, what in asked:
        Image.new("RGB", (8, 8), name).save(folder / f"{name}.png")
        box = {"task": "grounding", "expression": what, "gt_box": [1, 1, 4, 4]}
        rows.append(json.dumps({"image": f"{name}.png", **box}))
    (folder / f"{split}.jsonl").write_text("\n".join(rows))


def test_splits_that_share_images_are_refused_before_anything_is_made_of_them(
    tmp_path: Path,
) -> None:
    write_prompts(tmp_path, "validation", ("red", "cup"), ("blue", "dog"))
    write_prompts(tmp_path, "test", ("green", "cup"), ("blue", "cat"), ("blue", "dog"))
    with pytest.raises(InputError) as found:
        sweep(tmp_path)
    assert str(found.value.what).startswith(
        "2 prompts of 'test' have the image of a prompt of 'validation', on which settings are "
        "chosen, first test.jsonl:2 ("
    )
    assert found.value.where == "prepare.validation and prepare.test"
    with pytest.raises(InputError, match="1 prompts of 'test' have the image and question of a"):
        sweep(tmp_path, SWEEP, "eval.allow_train_images=true")
    write_prompts(tmp_path, "test", ("green", "cup"))
    with pytest.raises(MadeOfThem):
        sweep(tmp_path)


def test_settings_that_are_measured_on_different_prompts_are_refused(
    tmp_path: Path,
) -> None:
    """Another seed of the run draws other scenes of the testbed."""
    write_prompts(tmp_path, "test", ("green", "cup"))
    text = SWEEP.replace("train.beta: [0.1, 0.5, 1]", "seed: [0, 1]")
    with pytest.raises(ConfigError, match="seed: other values give other prompts of 'validation'"):
        sweep(tmp_path, text, "prepare.validation={source: testbed, num_prompts: 2}")
    write_prompts(tmp_path, "validation", ("red", "cup"))
    with pytest.raises(MadeOfThem):
        sweep(tmp_path, text)  # those of a file are the same


def test_a_question_s_wording_may_vary_over_all_splits_and_the_truth_may_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perpo_pipeline.evaluate.metrics.find_wordnet", lambda: None)  # slow
    sets = []
    for number, split in enumerate(("train", "validation", "test")):
        (tmp_path / split).mkdir()
        Image.new("RGB", (8, 8 + number)).save(tmp_path / split / "page.png")
        (tmp_path / split / "page.txt").write_text(f"the text of {split}")
        sets.append(f"prepare.{split}={{source: pages, path: {tmp_path / split}}}")
    keys = ", ".join(f"prepare.{split}.prompt" for split in ("train", "validation", "test"))
    words = [[text] * 3 for text in ("Read.", "What does this page say?")]
    start, end = SWEEP.split("grids:")[0], "seeds: [0]\nselect_on: validation\nreport_on: test\n"
    text = f"{start}grids: [{{methods: [base, dpo], parameters: {{PARAMETERS}}}}]\n{end}"
    with pytest.raises(MadeOfThem):
        sweep(tmp_path, text.replace("PARAMETERS", f'"{keys}": {json.dumps(words)}'), *sets)
    for split in ("train", "validation"):
        made = [*tmp_path.glob(f"data/small/prompts/{split}/*/manifest.json")]
        assert len(made) == 2
    write_prompts(tmp_path, "validation", ("red", "cup"))
    write_prompts(tmp_path, "test", ("green", "cup"))
    text = text.replace("PARAMETERS", "prepare.validation.box: [xyxy, xywh]")
    message = "box: other values give other true answers of 'validation', on which the settings"
    with pytest.raises(ConfigError, match=f"parameters: prepare.validation.{message}"):
        sweep(tmp_path, text)


def test_what_chooses_prompts_are_settings_of_sources() -> None:
    assert {name for model in SOURCE_MODELS for name in model.model_fields} >= CHOOSE_PROMPTS
