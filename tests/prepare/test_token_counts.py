"""What `perpo prepare` says about tokens, against the processors' own and against training's."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_families import save_tiny_family

from perpo_pipeline.cli import main
from perpo_pipeline.config.file import load_config
from perpo_pipeline.prepare import token_counts
from perpo_pipeline.prepare.token_counts import token_lines
from perpo_pipeline.run import Run
from perpo_pipeline.store.artifacts import Version, open_version
from perpo_pipeline.train.batches import list_rows
from perpo_pipeline.train.lists import TrainingList
from perpo_pipeline.vlm.inputs import encode_row, find_model_here
from perpo_pipeline.vlm.loading import load_without_weights

CONFIG = """
run: r
data_root: {folder}
prepare:
  train: {{source: jsonl, path: {folder}/rows.jsonl, task: vqa}}
  test: {{source: testbed, num_prompts: 2}}
"""
SIZES = [(60, 40), (40, 60), (30, 30), (64, 48), (400, 300), (61, 41), (90, 20)]
KINDS = ("qwen2_5_vl", "qwen3_vl", "llava_next", "llava_onevision", "internvl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared prompts, one with a much larger image, and a tiny model of each family."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for number, size in enumerate(SIZES):
        Image.new("RGB", size, (30 * number, 0, 0)).save(folder / f"{number}.png")
        rows.append(
            json.dumps(
                {"image": f"{number}.png", "prompt": "Why? " * (1 + number % 2), "gt_text": "x"}
            )
        )
    (folder / "rows.jsonl").write_text("\n".join(rows))
    (folder / "r.yaml").write_text(CONFIG.format(folder=folder))
    with pytest.raises(SystemExit) as ended:
        main(["prepare", "--config", str(folder / "r.yaml"), "--quiet", "--split", "train"])
    assert not ended.value.code
    for kind in KINDS:
        save_tiny_family(kind, folder / kind)
    return folder


def prompts_in(folder: Path) -> Version:
    return open_version(folder / "r/prompts/train")


def run_of(folder: Path, **settings: Any) -> Run:
    changed = {"model.device": "cpu", **{k.replace("__", "."): v for k, v in settings.items()}}
    return Run(load_config(folder / "r.yaml", changed), quiet=True)


def lines(folder: Path, **settings: Any) -> list[str]:
    return list(token_lines(run_of(folder, **settings), prompts_in(folder)))


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_processor_and_training_and_the_advice_would_do(
    kind: str, folder: Path
) -> None:
    run = run_of(folder, model__id=str(folder / kind))
    vlm = load_without_weights(find_model_here(run.config.model))  # type: ignore[arg-type]
    rows = prompts_in(folder).table().to_pylist()
    tokens = token_counts.count(vlm, rows, "processor")
    encoded = [encode_row(vlm, row, "processor") for row in rows]
    assert tokens.whole == [one.num_tokens for one in encoded]
    of_image = set(vlm.image_token_ids)
    if kind != "internvl":  # which counts the tokens around an image, too
        assert list(tokens.image) == [
            sum(int(i) in of_image for i in one.input_ids) for one in encoded
        ]
    one_token = [TrainingList(row, [[5, 6]], [1.0], [1]) for row in rows]
    lengths = [n for (n,) in list_rows(vlm, one_token, "processor", "shared-prefix")]
    assert [length - whole for length, whole in zip(lengths, tokens.whole, strict=True)] == [
        lengths[0] - tokens.whole[0]
    ] * len(rows)

    most = max(tokens.whole)
    summary, *none = lines(folder, model__id=str(folder / kind))
    assert not none
    assert summary.startswith("tokens of 7 prompts; median, 90 %, 99 %, most: image ")
    assert f", {max(tokens.image)}; text " in summary
    summary, warning = lines(
        folder, model__id=str(folder / kind), train__max_tokens_per_forward=most - 1
    )
    number = sum(whole == most for whole in tokens.whole)
    assert f"warning: {number} of 7 counted prompts ha" in warning
    assert f"train.max_tokens_per_forward ({most - 1})" in warning
    largest = rows[tokens.whole.index(most)]
    size = f"{largest['width']} x {largest['height']}"
    assert f"of which {max(tokens.image)} are its image of {size} pixels" in warning
    assert f"({largest['place']}" in warning
    (setting, value) = re.search(r"set model\.(\w+): (\d+) ", warning).groups()  # type: ignore[union-attr]
    assert (setting == "max_pixels") == kind.startswith("qwen")
    limited = {"model__id": str(folder / kind), f"model__{setting}": int(value)}
    assert len(lines(folder, **limited, train__max_tokens_per_forward=most - 1)) == 1


def test_a_photo_of_a_phone_is_named_where_nothing_limits_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Qwen2.5-VL's own limits it has 15,552 tokens; here the bounds are as tiny as the model.

    Only a sample is counted, but the largest images are always among them.
    """
    monkeypatch.setattr(token_counts, "MANY_TOKENS", 10)
    monkeypatch.setattr(token_counts, "USUAL_TOKENS", 6)
    monkeypatch.setattr(token_counts, "COUNTED_ROWS", 3)
    monkeypatch.setattr(token_counts, "LARGEST", 1)
    model = str(folder / "qwen2_5_vl")
    summary, warning = lines(folder, model__id=model)
    assert summary.startswith("tokens of 3 of 7 prompts (the largest images are among them)")
    assert warning.startswith("warning: model.max_pixels is not set; the largest has ")
    assert "400 x 300" in warning and f"set model.max_pixels: {6 * 28**2} (" in warning
    assert len(lines(folder, model__id=model, model__max_pixels=10**6)) == 1
    assert len(lines(folder, model__id=str(folder / "llava_next"))) == 1, "its tiles are bounded"


def test_a_prompt_beyond_the_context_is_a_warning(folder: Path) -> None:
    _, warning = lines(folder, model__id=str(folder / "qwen3_vl"), sample__max_new_tokens=512 - 20)
    assert "the model's context of 512 leaves beside an answer of 492" in warning


def test_without_the_models_files_nothing_is_counted(folder: Path) -> None:
    (line,) = lines(folder, model__id="somebody/not-on-this-machine")
    assert line.endswith("the files of somebody/not-on-this-machine are not on this machine")


def test_a_setting_that_the_family_lacks_is_refused_before_prompts_are_made(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        file = str(folder / "r.yaml")
        main(["prepare", "--config", file, "--split", "test", "--set", "model.max_pixels=9999"])
    assert ended.value.code == 2
    assert "this model's family has no setting for the size of an image" in capsys.readouterr().err
    assert not (folder / "r/prompts/test").exists()
