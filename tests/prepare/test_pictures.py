"""images_per_prompt: one prompt with several images and the truth of its own."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from perpo_pipeline import cli
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.errors import InputError
from perpo_pipeline.planning.amounts import Split
from perpo_pipeline.planning.disk import ROW_BYTES, expect_disk
from perpo_pipeline.prepare import pictures
from perpo_pipeline.prepare.pictures import put_together
from perpo_pipeline.prepare.prepare_prompts import prepare, survey
from perpo_pipeline.run import Run
from perpo_pipeline.store.artifacts import Version, open_version
from perpo_pipeline.store.inspect import describe
from perpo_pipeline.store.prompt_images import images_of, num_images

TRUTH = ("gt_box", "gt_text", "image", "image_sha256", "width", "height", "task", "dataset")


def run_of(folder: Path, seed: int = 0, **train: Any) -> Run:
    config = {
        "run": "r",
        "seed": seed,
        "data_root": str(folder),
        "prepare": {
            "train": {"source": "testbed", "num_prompts": 6, **train},
            "test": {"source": "testbed", "num_prompts": 1},
        },
    }
    return Run(RunConfig.model_validate(config), quiet=True)


def prepared(folder: Path, seed: int = 0, **train: Any) -> Version:
    return prepare(run_of(folder, seed, **train), "train")


@pytest.mark.parametrize("images", [2, 4])
def test_a_prompt_keeps_its_truth_among_the_images_of_others(tmp_path: Path, images: int) -> None:
    single = prepared(tmp_path).table().to_pylist()
    rows = prepared(tmp_path, images_per_prompt=images).table().to_pylist()
    hashes = {row["image_sha256"] for row in single}
    for own, row in zip(single, rows, strict=True):
        assert {name: row[name] for name in TRUTH} == {name: own[name] for name in TRUTH}
        assert row["prompt"] == f"In picture {row['box_image'] + 1}: {own['prompt']}"
        shown = images_of(row)
        assert len(shown) == images
        assert shown[row["box_image"]]["sha256"] == own["image_sha256"]
        assert len({image["sha256"] for image in shown}) == images
        assert {image["sha256"] for image in shown} <= hashes
        assert all(image["bytes"] for image in shown)
        assert row["prompt_id"] != own["prompt_id"]
    assert len({row["box_image"] for row in rows}) > 1
    assert len({row["prompt_id"] for row in rows}) == len(rows)


def test_it_follows_from_the_seed_and_counts_only_where_it_is_set(tmp_path: Path) -> None:
    single, two = prepared(tmp_path), prepared(tmp_path, images_per_prompt=2)
    assert "images_per_prompt" not in single.manifest["settings"]
    assert two.manifest["settings"]["images_per_prompt"] == 2
    assert prepared(tmp_path / "again", images_per_prompt=2).table().equals(two.table())
    assert prepared(tmp_path, images_per_prompt=3).fingerprint != two.fingerprint


def test_another_seed_draws_other_pictures(tmp_path: Path) -> None:
    for number in range(8):
        Image.new("RGB", (20, 10), (number, 0, 0)).save(tmp_path / f"{number}.png")
    lines = [{"image": f"{n}.png", "prompt": "?", "gt_text": "x"} for n in range(8)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = {"source": "jsonl", "path": str(tmp_path / "d.jsonl"), "task": "vqa"}

    def drawn(seed: int) -> tuple[list[list[str]], Any]:
        both = {name: {**source, "images_per_prompt": 2} for name in ("train", "test")}
        config = {"run": "r", "data_root": str(tmp_path), "prepare": both, "seed": seed}
        version = prepare(Run(RunConfig.model_validate(config), quiet=True), "train")
        rows = version.table().to_pylist()
        paths = [[Path(image["path"]).name for image in images_of(row)] for row in rows]
        return paths, version.manifest["settings"]

    (first, settings), (second, _) = drawn(0), drawn(1)
    assert first != second and settings["seed"] == 0


def test_blocks_are_read_once_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "BLOCK", 4)
    read: list[int] = []

    class Rows(list):  # type: ignore[type-arg]
        def __getitem__(self, index: Any) -> Any:
            read.append(index)
            return super().__getitem__(index)

    row = {"dataset": "d", "split": "s", "prompt": "?", "image_notes": [], "width": 1, "height": 1}
    rows = Rows(
        {**row, "prompt_id": f"p{n}", "source_row": str(n), "image_sha256": f"{n}", "image": n}
        for n in range(10)
    )
    found = list(put_together(rows, 3, seed=0))
    assert read == list(range(10))
    assert [num_images(one) for one in found] == [3] * 10
    for number, one in enumerate(found):
        near = range(4) if number < 4 else range(4, 10)  # a block that is not full joins another
        assert {int(fact["sha256"]) for fact in one["more_image_facts"]} <= set(near)


def test_prompts_that_cannot_be_put_together_are_errors(tmp_path: Path) -> None:
    (row,) = prepared(tmp_path, num_prompts=1).table().to_pylist()
    with pytest.raises(InputError, match="images_per_prompt is 2, but 1 prompts have only 1"):
        list(put_together([row], 2, seed=0))
    other = {**row, "image_sha256": "other"}
    history = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    for bad in ({"prompt": "Is <image> red?"}, {"history": history}, {"more_image_facts": [{}]}):
        with pytest.raises(InputError, match="takes prompts with one image, one turn") as caught:
            list(put_together([other, {**row, **bad}], 2, seed=0))
        assert row["prompt_id"] in str(caught.value)


def test_a_plan_counts_the_bytes_of_all_images(tmp_path: Path) -> None:
    run = run_of(tmp_path, images_per_prompt=2)
    found = survey(run, "train", 4)
    assert found.prompts == 6 and [num_images(row) for row in found.rows] == [2] * 4
    split = Split("train", 6, "to be rendered", ("sampled",), found.rows)
    nothing: Any = SimpleNamespace(download=0)
    _, high = expect_disk(run, nothing, [split], None, nothing, []).parts["prompts"]
    each = [sum(len(image["bytes"]) for image in images_of(row)) for row in found.rows]
    assert high == pytest.approx(6 * (ROW_BYTES[1] + sum(each) / 4))


def test_inspect_shows_the_bytes_of_an_image_by_their_number(tmp_path: Path) -> None:
    version = prepared(tmp_path, images_per_prompt=3)
    said = describe(version.path, rows=1)
    (row,) = version.table().slice(0, 1).to_pylist()
    listed = ", ".join(
        f"{{bytes: <{len(o['bytes'])} bytes>, path: None}}" for o in row["more_images"]
    )
    assert f"more_images: [{listed}]" in said


CONFIG = """
run: r
model: {id: testbed, dtype: float32, device: cpu}
prepare:
  train: {source: testbed, num_prompts: 4, images_per_prompt: 2}
  test: {source: testbed, num_prompts: 4, images_per_prompt: 2}
sample: {num_samples: 4, temperature: 1.0, max_new_tokens: 20, batch_size: 4}
filter: {min_margin: 0.01, max_lists: 2}
train:
  batch_size: 2
  learning_rate: 1.0e-3
  lora: {rank: 2, alpha: 4}
  methods: {perpo: }
eval: {max_new_tokens: 20, batch_size: 4}
report: {num_resamples: 100, pictures: 2}
"""


def test_two_images_go_through_all_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(CONFIG)
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "--config", "r.yaml", "--quiet"])
    assert not ended.value.code, capsys.readouterr().err
    found = {
        name: open_version(Path("data/r") / name)
        for name in (
            "samples/train",
            "preferences/train",
            "adapter/perpo",
            "predictions/perpo@test",
        )
    }
    assert found["samples/train"].table().num_rows == 4 * 4
    for image in ("other-image", "blank-image"):
        version = open_version(Path(f"data/r/predictions/base-{image}@test"))
        assert version.table().num_rows == 4
    (page,) = Path("data/r/report/default").glob("*/report.html")
    shown = page.read_text()
    assert "In picture " in shown
    # Each example and list has its other image small beside it.
    pictures = shown.count('<image id="')
    assert pictures > 1 and shown.count('<div class="others"><img src="data:image/') == pictures
    assert 'alt="picture 1 of 2"' in shown or 'alt="picture 2 of 2"' in shown
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main(["status", "--config", "r.yaml", "--set", "prepare.train.images_per_prompt=null"])
    said = capsys.readouterr().out
    assert "prepare.train.images_per_prompt 2, the configuration says null" in said
