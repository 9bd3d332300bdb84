"""`perpo export` of a small finished run: each layout by its documented keys, and its errors."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from synthetic_run import (
    BOTH,
    prepare_synthetic,
    sample_synthetic,
    synthetic_config,
)

from perpo_pipeline.cli import main
from perpo_pipeline.config.fingerprints import STAGE_VERSIONS
from perpo_pipeline.errors import ArtifactError, ConfigError, InputError
from perpo_pipeline.export import files, parts, targets
from perpo_pipeline.export import images as exported_images
from perpo_pipeline.export.export_run import Request, export
from perpo_pipeline.export.targets import TARGETS
from perpo_pipeline.filter.filter_lists import filter_lists
from perpo_pipeline.run import Run
from perpo_pipeline.score.score_answers import score
from perpo_pipeline.store.writing import Recipe
from perpo_pipeline.vlm.images import image_sha256

Row = dict[str, Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Lists of boxes and texts, whose images are inside the prompts."""
    config = synthetic_config(tmp_path_factory.mktemp("run"), num_prompts=12, task=BOTH)
    made = Run(config, quiet=True)
    prepare_synthetic(made, "train", task=BOTH)
    sample_synthetic(made)
    score(made, "train")
    filter_lists(made, "train")
    return made


@pytest.fixture(scope="module")
def lists(run: Run) -> list[Row]:
    rows: list[Row] = run.latest("preferences", "train").table().to_pylist()
    assert len(rows) > 8 and len({row["task"] for row in rows}) == 2
    return rows


@pytest.fixture(scope="module")
def prompts(run: Run) -> dict[str, Row]:
    rows = run.latest("prompts", "train").table().to_pylist()
    return {row["prompt_id"]: row for row in rows}


def read(out: Path) -> list[Row]:
    """The rows of an export."""
    if lines := list(out.glob("*.jsonl")):
        return [json.loads(line) for line in lines[0].read_text("utf-8").splitlines()]
    (file,) = out.glob("data/*.parquet")
    rows: list[Row] = pq.read_table(file).to_pylist()
    return rows


def asked(prompt: Row) -> list[Row]:
    """The prompt as TRL documents it."""
    parts = [{"type": "image", "text": None}, {"type": "text", "text": prompt["prompt"]}]
    return [{"role": "user", "content": parts}]


def answered(text: str) -> list[Row]:
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


def test_trl_gets_the_best_and_worst_answer_of_each_list(
    run: Run, lists: list[Row], prompts: dict[str, Row], tmp_path: Path
) -> None:
    rows = read(export(run, "train", tmp_path / "out", Request("trl")))
    assert [row["prompt_id"] for row in rows] == [one["prompt_id"] for one in lists]
    for row, one in zip(rows, lists, strict=True):
        prompt = prompts[one["prompt_id"]]
        rewards = dict(zip(one["completions"], one["rewards"], strict=True))
        assert row["prompt"] == asked(prompt)
        assert row["images"] == [{"bytes": prompt["image"]["bytes"], "path": None}]
        assert rewards[row["chosen"][0]["content"][0]["text"]] == max(one["rewards"])
        assert row["rejected"] == answered(row["rejected"][0]["content"][0]["text"])
        assert row["rejected_reward"] == min(one["rewards"])
        assert row["chosen_reward"] - row["rejected_reward"] == one["margin"]


def test_lists_have_every_completion_with_its_reward(
    run: Run, lists: list[Row], prompts: dict[str, Row], tmp_path: Path
) -> None:
    plain = read(export(run, "train", tmp_path / "plain", Request("lists")))
    chats = read(export(run, "train", tmp_path / "chats", Request("trl-ranked")))
    for row, chat, one in zip(plain, chats, lists, strict=True):
        prompt = prompts[one["prompt_id"]]
        shared = ("prompt_id", "rewards", "counts", "parse_ok", "finish_reasons", "margin")
        assert {name: row[name] for name in shared} == {name: one[name] for name in shared}
        assert row["completions"] == one["completions"] and row["prompt"] == prompt["prompt"]
        assert chat["completions"] == [answered(text) for text in one["completions"]]
        assert chat["prompt"] == asked(prompt) and chat["rewards"] == one["rewards"]
        assert row["gt_box"] == prompt["gt_box"] and row["gt_text"] == prompt["gt_text"]


def test_the_layout_of_llama_factory(
    run: Run, lists: list[Row], prompts: dict[str, Row], tmp_path: Path
) -> None:
    """data/README.md of hiyouga/LlamaFactory: 'Preference Dataset', 'Multimodal Image Dataset'."""
    out = export(run, "train", tmp_path / "out", Request("llamafactory"))
    (name, entry), *others = json.loads((out / "dataset_info.json").read_text()).items()
    assert name == "synthetic_train" and not others
    assert entry["formatting"] == "sharegpt" and entry["ranking"] is True
    assert (out / entry["file_name"]).is_file()
    rows = read(out)
    assert set(entry["columns"]) == {"messages", "chosen", "rejected", "images"}
    assert set(entry["columns"].values()) <= rows[0].keys()
    for row, one in zip(rows, lists, strict=True):
        prompt = prompts[one["prompt_id"]]
        assert row["conversations"] == [{"from": "human", "value": f"<image>{prompt['prompt']}"}]
        assert row["chosen"].keys() == {"from", "value"} and row["chosen"]["from"] == "gpt"
        assert row["rejected"]["value"] in one["completions"]
        (image,) = row["images"]
        assert (out / image).read_bytes() == prompt["image"]["bytes"]


def test_the_layout_of_ms_swift(
    run: Run, lists: list[Row], prompts: dict[str, Row], tmp_path: Path
) -> None:
    """Custom-dataset.md of modelscope/ms-swift: 'DPO/ORPO/CPO/SimPO/RM'."""
    model = run.config.model.model_copy(update={"system_prompt": "You find things."})
    config = run.config.model_copy(update={"model": model})
    asked_so = Run(config, quiet=True, allow_stale=True)
    out = export(asked_so, "train", tmp_path / "out", Request("ms-swift"))
    for row, one in zip(read(out), lists, strict=True):
        question = f"<image>{prompts[one['prompt_id']]['prompt']}"
        turns = [("system", "You find things."), ("user", question)]
        for messages, name in (("messages", "chosen"), ("rejected_messages", "rejected")):
            *before, answer = [(turn["role"], turn["content"]) for turn in row[messages]]
            assert before == turns and answer[0] == "assistant"
            reward = dict(zip(one["completions"], one["rewards"], strict=True))[answer[1]]
            assert reward == row[f"{name}_reward"]
        assert row["images"] == row["rejected_images"] and len(row["images"]) == 1


def test_sft_gets_the_best_answers_and_grpo_the_truths(
    run: Run, lists: list[Row], prompts: dict[str, Row], tmp_path: Path
) -> None:
    best = read(export(run, "train", tmp_path / "sft", Request("sft")))
    for row, one in zip(best, lists, strict=True):
        text = row["completion"][0]["content"][0]["text"]
        assert row["completion"] == answered(text) and row["prompt"] == asked(
            prompts[row["prompt_id"]]
        )
        assert dict(zip(one["completions"], one["rewards"], strict=True))[text] == row["reward"]
        assert row["reward"] == max(one["rewards"])
    rows = read(export(run, "train", tmp_path / "grpo", Request("grpo")))
    assert [row["prompt_id"] for row in rows] == list(prompts)
    for row in rows:
        prompt = prompts[row["prompt_id"]]
        same = ("task", "gt_box", "gt_text", "gt_boxes", "width", "height", "extra")
        assert {name: row[name] for name in same} == {name: prompt[name] for name in same}
        assert row["prompt"] == asked(prompt)


def test_the_card_says_where_the_rows_are_from_and_its_header_where_they_are(
    run: Run, lists: list[Row], tmp_path: Path
) -> None:
    request = Request("trl", pairs="all", min_margin=0.5)
    out = export(run, "train", tmp_path / "out", request)
    _, header, text = (out / "README.md").read_text("utf-8").split("---\n", 2)
    (config,) = yaml.safe_load(header)["configs"]
    (data,) = config["data_files"]
    rows = read(out)
    assert data["split"] == "train" and len(list(out.glob(data["path"]))) == 1
    assert all(row["chosen_reward"] - row["rejected_reward"] >= 0.5 - 1e-9 for row in rows)
    margins = [a - b for one in lists for a in one["rewards"] for b in one["rewards"]]
    assert len(rows) == sum(margin >= 0.5 - 1e-9 for margin in margins) > len(lists)
    for artifact in ("prompts", "samples", "scores", "preferences"):
        assert f"| {artifact} | train | `{run.latest(artifact, 'train').fingerprint}` |" in text
    assert f"{len(rows):,} rows: pairs" in text and "with a margin of 0.5 or more" in text
    assert "DPOTrainer(model, args=arguments, train_dataset=dataset)" in text
    assert str(run.config.data_root) not in text  # cards are published


def test_what_is_written_at_once_changes_no_row(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables are cut at a list, and files after a size."""
    request = Request("trl", pairs="all")
    expected = read(export(run, "train", tmp_path / "whole", request))
    ranked = read(export(run, "train", tmp_path / "ranked", Request("trl-ranked")))
    monkeypatch.setattr(parts, "ROWS_AT_ONCE", 5)
    monkeypatch.setattr(files, "BYTES_PER_FILE", 20_000)
    out = export(run, "train", tmp_path / "cut", request)
    pieces = sorted((out / "data").iterdir())
    count = len(pieces)
    assert count > 1
    assert [p.name for p in pieces] == [
        f"train-{i:05d}-of-{count:05d}.parquet" for i in range(count)
    ]
    rows = [row for piece in pieces for row in pq.read_table(piece).to_pylist()]
    assert rows == expected
    monkeypatch.setattr(files, "BYTES_PER_FILE", 10**9)
    assert read(export(run, "train", tmp_path / "lists", Request("trl-ranked"))) == ranked
    metadata = pq.read_schema(pieces[0]).metadata
    assert json.loads(metadata[b"huggingface"])["info"]["features"].keys() == {"images"}


@pytest.fixture
def with_files(run: Run, tmp_path: Path) -> tuple[Run, Path]:
    """The same run with its images in files beside it."""
    folder = tmp_path / "photos"
    folder.mkdir()
    config = run.config.model_copy(update={"data_root": tmp_path / "data"})
    made = Run(config, quiet=True, allow_stale=True)
    import synthetic_run

    real = synthetic_run._prompt

    def in_file(split: str, index: int, *rest: Any) -> Row:
        row = real(split, index, *rest)
        path = folder / f"{index}.png"
        path.write_bytes(row["image"]["bytes"])
        return {**row, "image": {"bytes": None, "path": str(path)}}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic_run, "_prompt", in_file)
        prepare_synthetic(made, "train", task=BOTH)
    sample_synthetic(made)
    score(made, "train")
    filter_lists(made, "train")
    return made, folder


def test_images_go_along_as_paths_or_as_they_are(
    with_files: tuple[Run, Path], tmp_path: Path
) -> None:
    run, folder = with_files
    by_path = read(export(run, "train", tmp_path / "a", Request("trl")))
    embedded = read(export(run, "train", tmp_path / "b", Request("trl", embed_images=True)))
    lines = read(export(run, "train", tmp_path / "c", Request("ms-swift")))
    out = export(run, "train", tmp_path / "d", Request("ms-swift", embed_images=True))
    for row, inside, line, copied in zip(by_path, embedded, lines, read(out), strict=True):
        (image,) = row["images"]
        assert image["bytes"] is None and Path(image["path"]).parent == folder
        data = Path(image["path"]).read_bytes()
        assert inside["images"] == [{"bytes": data, "path": None}]
        assert line["images"] == [image["path"]]
        assert copied["images"] == [f"images/{image_sha256(data)[:32]}.png"]
        assert (out / copied["images"][0]).read_bytes() == data
    count = len({row["images"][0]["path"] for row in by_path})
    said = f"| images | {count}, as paths on the machine that made this |"
    for name, by_paths in (("a", True), ("b", False), ("c", True), ("d", False)):
        card = (tmp_path / name / "README.md").read_text("utf-8")
        assert (said in card) is by_paths and str(folder) not in card


def test_the_photo_of_a_camera_with_further_pictures_behind_it_is_a_jpg() -> None:
    """Pillow calls the format MPO; its bytes begin as any JPEG's."""
    sink, pictures = io.BytesIO(), [Image.new("RGB", (8, 8), one) for one in ("red", "blue")]
    pictures[0].save(sink, format="MPO", save_all=True, append_images=pictures[1:])
    with Image.open(io.BytesIO(sink.getvalue())) as found:
        assert found.format == "MPO" and sink.getvalue()[:3] == b"\xff\xd8\xff"
    assert exported_images._ending(sink.getvalue()) == "jpg"


def test_images_that_are_gone_or_changed_are_named_together_and_nothing_is_written(
    with_files: tuple[Run, Path], tmp_path: Path
) -> None:
    run, folder = with_files
    kept = [row["prompt_id"] for row in run.latest("preferences", "train").table().to_pylist()]
    first, second = (folder / f"{run_index(run, prompt_id)}.png" for prompt_id in kept[:2])
    first.unlink()
    second.write_bytes(b"other")
    with pytest.raises(InputError) as gone:
        export(run, "train", tmp_path / "out", Request("trl"))
    assert "1 fault" in str(gone.value) and f"there is no image {first}" in str(gone.value)
    with pytest.raises(InputError) as changed:
        export(run, "train", tmp_path / "out", Request("llamafactory", embed_images=True))
    text = str(changed.value)
    assert "2 faults" in text and f"image {first}: No such file" in text
    assert f"image {second} has changed since it was prepared" in text
    assert "nothing was written" in text
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def run_index(run: Run, prompt_id: str) -> str:
    rows = run.latest("prompts", "train").table().to_pylist()
    return next(str(row["source_row"]) for row in rows if row["prompt_id"] == prompt_id)


def test_an_answer_that_spells_the_place_of_an_image_cannot_go_into_texts_with_places(
    run: Run, tmp_path: Path
) -> None:
    import synthetic_run

    config = run.config.model_copy(update={"data_root": tmp_path / "data"})
    made = Run(config, quiet=True, allow_stale=True)
    prepare_synthetic(made, "train", task=BOTH)
    with pytest.MonkeyPatch.context() as patch:
        real = synthetic_run._answer
        patch.setattr(synthetic_run, "_answer", lambda row, *rest: real(row, *rest) + " <image>")
        sample_synthetic(made)
    score(made, "train")
    filter_lists(made, "train")
    with pytest.raises(InputError, match="an answer holds <image>") as refused:
        export(made, "train", tmp_path / "out", Request("llamafactory"))
    assert "export to trl or sft" in str(refused.value)
    rows = read(export(made, "train", tmp_path / "out", Request("trl")))
    assert rows[0]["chosen"][0]["content"][0]["text"].endswith(" <image>")


def made_by_hand(tmp_path: Path, run: Run, **patches: Any) -> Run:
    """A run like `run` with other functions of synthetic_run."""
    import synthetic_run

    config = run.config.model_copy(update={"data_root": tmp_path / "data"})
    made = Run(config, quiet=True, allow_stale=True)
    with pytest.MonkeyPatch.context() as patch:
        for name, function in patches.items():
            patch.setattr(synthetic_run, name, function)
        prepare_synthetic(made, "train", task=BOTH)
        sample_synthetic(made)
    score(made, "train")
    filter_lists(made, "train")
    return made


def test_texts_that_spell_the_place_of_a_video_cannot_go_to_llama_factory(
    run: Run, tmp_path: Path
) -> None:
    """It counts them in all turns, and stops; to other tools they are text."""
    import synthetic_run

    answer, prompt = synthetic_run._answer, synthetic_run._prompt

    def asks_for_sound(split: str, index: int, *rest: Any) -> Row:
        row = prompt(split, index, *rest)
        return {**row, "prompt": f"{row['prompt']} <audio>"}

    made = made_by_hand(
        tmp_path,
        run,
        _answer=lambda row, *rest: answer(row, *rest) + " <video>",
        _prompt=asks_for_sound,
    )
    with pytest.raises(InputError) as refused:
        export(made, "train", tmp_path / "out", Request("llamafactory"))
    assert "an answer holds <video>, the place of a video" in str(refused.value)
    assert "the prompt holds <audio>, the place of a sound" in str(refused.value)
    (row, *_) = read(export(made, "train", tmp_path / "out", Request("ms-swift")))
    assert row["messages"][0]["content"].endswith(" <audio>")
    assert row["rejected_messages"][1]["content"].endswith(" <video>")


def test_better_answers_that_were_cut_are_counted(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sampled token ids have no end there; the end of a text is an end to any tool."""
    import synthetic_run

    real = synthetic_run._completion

    def cut(answer: str) -> Row:
        reason = "length" if answer.startswith("[0.1") else "stop"
        return {**real(answer), "finish_reason": reason}

    made = made_by_hand(tmp_path, run, _completion=cut)
    rows = read(out := export(made, "train", tmp_path / "out", Request("trl", pairs="all")))
    better = [row["chosen"][0]["content"][0]["text"] for row in rows]
    count = sum(text.startswith("[0.1") for text in better)
    assert 0 < count < len(rows)
    said = f"{count} of the {len(rows)} better answers were cut at sample.max_new_tokens"
    assert said in capsys.readouterr().err
    card = (out / "README.md").read_text("utf-8")
    assert f"Of the better answers, {count} of {len(rows)} were cut at max_new_tokens" in card


def asked_with(
    system: str, root: Path, num_prompts: int, monkeypatch: pytest.MonkeyPatch, **filtered: Any
) -> Run:
    """A run of its own up to its lists, whose samples record this system prompt."""
    config = synthetic_config(root / system, num_prompts=num_prompts)
    update = {"filter": config.filter.model_copy(update=filtered), "run": system}
    made = Run(config.model_copy(update=update), quiet=True, allow_stale=True)
    prepare_synthetic(made, "train")

    def recorded(*given: Any) -> Recipe:
        more = {"model": "sha256:0", "system_prompt": system}
        return Recipe(*given[:4], {**given[4], **more}, *given[5:])

    with monkeypatch.context() as patch:
        patch.setattr("synthetic_run.Recipe", recorded)
        sample_synthetic(made)
    score(made, "train")
    filter_lists(made, "train")
    return made


def test_lists_that_were_asked_with_different_system_prompts_are_not_exported_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The earlier ones got the system turn of the newest; each run's own lists have theirs."""
    first = asked_with("Round one", tmp_path, 12, monkeypatch)
    earlier = {"earlier": first.latest("preferences", "train").path, "keep_earlier": 1.0}
    same = asked_with("Round one", tmp_path / "again", 6, monkeypatch, **earlier)
    for one in (first, same):
        rows = read(export(one, "train", tmp_path / f"{id(one)}", Request("trl")))
        assert {row["prompt"][0]["content"][0]["text"] for row in rows} == {"Round one"}
        assert len(rows) > 6
    assert "were sampled with" not in capsys.readouterr().err
    other = asked_with("Round two", tmp_path, 6, monkeypatch, **earlier)
    said = capsys.readouterr().err
    assert "were sampled with model.system_prompt 'Round one', the new ones with" in said
    with pytest.raises(ConfigError) as caught:
        export(other, "train", tmp_path / "out", Request("trl"))
    what = caught.value.what
    assert "were sampled with model.system_prompt 'Round one', the others with" in what
    assert "'Round two'; an export has one chat" in what and str(earlier["earlier"]) in what
    assert "filter.earlier" in str(caught.value.fix) and not (tmp_path / "out").exists()


def test_the_card_and_the_chats_are_of_the_samples_not_of_todays_settings(
    run: Run, tmp_path: Path
) -> None:
    """With --allow-stale the file may say something else; a folder's path is nobody's business."""
    import synthetic_run

    prepared = run.latest("prompts", "train")
    counted = run.config.sample.result_settings() | {
        "model": "sha256:0",
        "system_prompt": "You find things.",
        "chat_template_kwargs": {"enable_thinking": False},
    }
    notes = {"model_id": "/home/somebody/models/llava"}  # of another machine
    samples = run.latest("samples", "train")
    recipe = Recipe(
        "samples",
        "train",
        "sample",
        STAGE_VERSIONS["samples"],
        counted,
        {"prompts": prepared},
        notes,
    )
    config = run.config.model_copy(update={"data_root": tmp_path / "data"})
    made = Run(config, quiet=True, allow_stale=True)
    synthetic_run._write(made, recipe, samples.table().to_pylist())
    read_so = config.model.model_copy(update={"box_format": "qwen3-vl"})
    score(replace(made, config=config.model_copy(update={"model": read_so})), "train")
    filter_lists(made, "train")
    out = export(made, "train", tmp_path / "out", Request("lists"))
    card = (out / "README.md").read_text("utf-8")
    assert "| model whose answers these are | `llava` |" in card and "somebody" not in card
    assert "format `qwen3-vl`, frame `full`" in card and "{'enable_thinking': False}" in card
    system = {"role": "system", "content": "You find things."}
    assert all(row["history"] == [system] for row in read(out))


def test_a_split_has_a_name_that_datasets_takes(run: Run, tmp_path: Path) -> None:
    splits = {**run.config.prepare, "val-2": run.config.prepare["test"]}
    update = {"prepare": splits, "data_root": tmp_path / "data"}
    named = run.config.model_copy(update=update)
    made = Run(named, quiet=True)
    prepare_synthetic(made, "val-2")
    out = export(made, "val-2", tmp_path / "out", Request("grpo"))
    _, header, text = (out / "README.md").read_text("utf-8").split("---\n", 2)
    (data,) = yaml.safe_load(header)["configs"][0]["data_files"]
    assert data["split"] == "val_2" and len(list(out.glob(data["path"]))) == 1
    assert 'split="val_2"' in text


def test_pairs_of_large_images_are_written_in_groups_that_can_be_read(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An Arrow array holds 2 GB, which the pairs of one list can exceed."""
    request = Request("trl", pairs="all")
    expected = read(export(run, "train", tmp_path / "whole", request))
    monkeypatch.setattr(parts, "IMAGE_BYTES_AT_ONCE", 1)
    monkeypatch.setattr(targets, "LARGEST_ARRAY", 1000)
    monkeypatch.setattr(files, "BYTES_PER_GROUP", 2000)
    out = export(run, "train", tmp_path / "cut", request)
    (file,) = (out / "data").iterdir()
    assert pq.read_table(file).to_pylist() == expected
    groups = pq.ParquetFile(file).metadata
    assert max(groups.row_group(i).num_rows for i in range(groups.num_row_groups)) < 6


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("tlr"), "--to tlr: there is no such target; did you mean 'trl'?"),
        (Request("trl", pairs="worst"), "--pairs worst: there is no such rule"),
        (Request("trl", pairs="m3po"), "filter.strategy=m3po"),
        (Request("sft", pairs="all"), "--pairs changes nothing with --to sft"),
        (Request("grpo", min_margin=0.2), "--min-margin changes nothing with --to grpo"),
        (Request("trl", min_margin=2.0), "--min-margin 2: rewards are from 0 to 1"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    run: Run, tmp_path: Path, request_: Request, message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        export(run, "train", tmp_path / "out", request_)
    assert message in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_without_a_pair_nothing_is_written_and_the_widest_margin_is_named(
    run: Run, lists: list[Row], tmp_path: Path
) -> None:
    widest = max(row["margin"] for row in lists)
    with pytest.raises(ArtifactError) as refused:
        export(run, "train", tmp_path / "out", Request("trl", min_margin=1.0))
    assert f"the widest of {len(lists)} lists is {widest:.3g}" in str(refused.value)
    assert "lower --min-margin" in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_never_written_to(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export(run, "train", out, Request("trl"))  # an empty one is taken
    before = sorted(out.rglob("*"))
    with pytest.raises(ArtifactError, match="this path already holds something"):
        export(run, "train", out, Request("sft"))
    assert sorted(out.rglob("*")) == before


def test_nothing_is_written_among_the_artifacts(run: Run, tmp_path: Path) -> None:
    """`perpo gc` would remove it, and a folder beside versions would be taken for one."""
    version = run.latest("preferences", "train").path
    for out in (version / "mine", version.parent / "mine", run.config.run_dir / "prompts" / "mine"):
        with pytest.raises(ArtifactError, match="among the artifacts of a run"):
            export(run, "train", out, Request("trl"))
        assert not out.exists()
    export(run, "train", run.config.run_dir / "exported", Request("trl"))


def test_an_export_that_fails_in_the_middle_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files._Parquet, "finish", full)
    with pytest.raises(ArtifactError, match="the disk is full"):
        export(run, "train", tmp_path / "out", Request("trl"))
    assert not list(tmp_path.iterdir())


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["export", *arguments])
    return int(ended.value.code or 0)


def test_the_command_names_what_is_wrong_before_it_reads_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out"), "--config", "nowhere.yaml"]
    for arguments, message in (
        (["--to", "swift"], "there is no such target; did you mean 'ms-swift'?"),
        (["--to", "trl", "--private"], "--private needs --push-to-hub"),
        (["--to", "trl", "--push-to-hub", "me/pairs"], "add --embed-images"),
        (["--to", "trl", "--prompts", "x"], "--prompts changes nothing with --to trl"),
        (["--to", "grpo", "--preferences", "x"], "--preferences changes nothing with --to grpo"),
    ):
        assert command(*arguments, *out) == 2
        assert message in capsys.readouterr().err
    file = tmp_path / "r.yaml"
    source = {"source": "testbed", "num_prompts": 4}
    splits = {"prepare": {"train": source, "test": source}}
    file.write_text(yaml.safe_dump({"run": "r", "data_root": str(tmp_path / "d"), **splits}))
    given = ["--to", "trl", "--out", str(tmp_path / "out"), "--config", str(file)]
    for split, message in (
        ("trian", "this run has no such split; did you mean 'train'?"),
        ("test", f"perpo run --config {file} --to filter --set sample.split=test"),
        ("train", f"run: perpo filter --config {file}"),
    ):
        assert command(*given, "--split", split) == 2
        assert message in capsys.readouterr().err
    help_ = TARGETS.keys()
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in help_)
