"""`source: messages`: chats in the layouts that others publish, written by hand, and their faults.

The rows have the keys of each project's own description: TRL's dataset_formats.md ('Vision
datasets'), OpenAI's reference of chat completions (`image_url`), LLaVA's Finetune_Custom_Data.md,
LLaMA-Factory's data/README.md ('Sharegpt Format'), ms-swift's Custom-dataset.md ('Grounding').
"""

import base64
import gzip
import json
import os
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError
from synthetic_run import BOTH, SIZE, prepare_synthetic, sample_synthetic, synthetic_config

from perpo_pipeline.config.messages import MessagesSource
from perpo_pipeline.config.sources import TableSource
from perpo_pipeline.errors import InputError
from perpo_pipeline.export.export_run import Request as Wanted
from perpo_pipeline.export.export_run import export
from perpo_pipeline.filter.filter_lists import filter_lists
from perpo_pipeline.json_files import Faults, read_json_lines, read_json_rows
from perpo_pipeline.prepare.collect import Request
from perpo_pipeline.prepare.messages import read_messages
from perpo_pipeline.prepare.prepare_prompts import prepare
from perpo_pipeline.prepare.tables import read_table
from perpo_pipeline.run import Run
from perpo_pipeline.score.score_answers import score

Row = dict[str, Any]
WIDTH, HEIGHT = 100, 50
QUESTION = "Where is the sheep?"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two photos of 100 x 50 pixels."""
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (WIDTH, HEIGHT), colour).save(tmp_path / name)
    return tmp_path


def write_lines(folder: Path, *rows: Any) -> Path:
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path, **settings: Any) -> list[Row]:
    source = MessagesSource(source="messages", path=path, **settings)
    return list(read_messages(source, Request("train")).rows)


def faults_of(path: Path, **settings: Any) -> str:
    with pytest.raises(InputError) as refused:
        read(path, **settings)
    return str(refused.value)


def turns(answer: str, question: str = QUESTION, **keys: Any) -> Row:
    asked = {"role": "user", "content": question}
    return {"messages": [asked, {"role": "assistant", "content": answer}], **keys}


def share_gpt(answer: str, question: str = QUESTION) -> list[Row]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def parts(*found: Any) -> list[Row]:
    answer = [{"type": "text", "text": "A sheep."}]
    return [{"role": "user", "content": list(found)}, {"role": "assistant", "content": answer}]


TEXT = {"type": "text", "text": QUESTION}
LAYOUTS: dict[str, Row] = {
    "trl-text": turns("A sheep.", images=["a.png"]),
    "trl-parts": {"messages": parts({"type": "image"}, TEXT), "images": ["a.png"]},
    "trl-prompt": {
        "prompt": [{"role": "user", "content": [{"type": "image", "text": None}, TEXT]}],
        "completion": [{"role": "assistant", "content": [{"type": "text", "text": "A sheep."}]}],
        "image": "a.png",
    },
    "trl-pairs": {
        "prompt": [{"role": "user", "content": QUESTION}],
        "chosen": [{"role": "assistant", "content": "A sheep."}],
        "rejected": [{"role": "assistant", "content": "A dog."}],
        "images": ["a.png"],
    },
    "own-image": {"messages": parts({"type": "image", "image": "a.png"}, TEXT)},
    "qwen-file": {"messages": parts({"type": "image", "image": "file://HERE/a.png"}, TEXT)},
    "openai": {"messages": parts(TEXT, {"type": "image_url", "image_url": {"url": "DATA"}})},
    "llava": {
        "id": "997bb945",
        "image": "a.png",
        "conversations": share_gpt("A sheep.", f"<image>\n{QUESTION}"),
    },
    "llama-factory": {
        "conversations": share_gpt("", f"<image>{QUESTION}")[:1],
        "chosen": {"from": "gpt", "value": "A sheep."},
        "rejected": {"from": "gpt", "value": "A dog."},
        "images": ["a.png"],
    },
    "ms-swift": turns("A sheep.", f"<image>{QUESTION}", images=["a.png"]),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_each_layout_gives_the_question_the_image_and_the_answer(
    folder: Path, name: str, ending: str
) -> None:
    data = base64.b64encode((folder / "a.png").read_bytes()).decode()
    text = json.dumps(LAYOUTS[name]).replace("HERE", str(folder))
    row = json.loads(text.replace("DATA", f"data:image/png;base64,{data}"))
    path = folder / f"chats.{ending}"
    if ending == "jsonl":
        path.write_text(json.dumps(row) + "\n")
    elif ending == "json":
        path.write_text(json.dumps([row], indent=1))
    else:
        pq.write_table(pa.Table.from_pylist([row]), path)
    (found,) = read(path, task="vqa")
    asked = {"openai": f"{QUESTION}<image>"}.get(name, QUESTION)
    assert (found["prompt"], found["gt_text"], found["task"]) == (asked, "A sheep.", "vqa")
    assert found["image"]["path"] == (None if name == "openai" else str(folder / "a.png"))
    assert (found["width"], found["height"]) == (WIDTH, HEIGHT)
    assert found["source_row"] == {"llava": "997bb945"}.get(name, "1")
    kept = {"trl-pairs": "A dog.", "llama-factory": "A dog."}.get(name)
    assert kept is None or kept in found["extra"]


@pytest.mark.parametrize("kind", ["bytes", "struct", "list"])
def test_images_inside_parquet(folder: Path, kind: str) -> None:
    data = {name: (folder / name).read_bytes() for name in ("a.png", "b.png")}
    images: Mapping[str, Callable[[bytes], Any]] = {
        "bytes": lambda image: {"image": image},
        "struct": lambda image: {"image": {"bytes": image, "path": None}},
        "list": lambda image: {"images": [{"bytes": image, "path": "x.png"}]},
    }
    rows = [turns(name, **images[kind](image)) for name, image in data.items()]
    path = folder / "chats.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1)
    found = read(path, task="vqa")
    assert [row["image"]["bytes"] for row in found] == list(data.values())
    assert [row["gt_text"] for row in found] == ["a.png", "b.png"]


def test_a_folder_that_datasets_saved(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [turns("A sheep.", images=[str(folder / "a.png")])]
    datasets.Dataset.from_list(rows).save_to_disk(str(folder / "saved"))
    (row,) = read(folder / "saved", task="ocr")
    assert row["gt_text"] == "A sheep." and row["dataset"] == "saved"


def test_boxes_in_the_answer_are_read_as_the_format_says(folder: Path) -> None:
    path = write_lines(
        folder,
        turns("It is at [0.10, 0.20, 0.50, 1.00].", image="a.png"),
        turns("[0.10, 0.20, 0.50, 0.60] and [0.0, 0.0, 0.5, 0.5]", image="a.png"),
        turns("[]", image="a.png"),
    )
    found = read(path, task="grounding", box_format="llava")
    assert found[0]["gt_box"] == pytest.approx([10, 10, 50, 50])
    assert found[0]["gt_boxes"] is None and found[0]["gt_text"] is None
    two = [[10, 10, 50, 30], [0, 0, 50, 25]]
    assert [pytest.approx(box) for box in two] == found[1]["gt_boxes"]
    assert found[2]["gt_boxes"] == [] and found[2]["gt_box"] is None


def test_what_rounding_puts_beyond_the_image_is_cut_off_and_nothing_more(folder: Path) -> None:
    """In thousandths of 100 pixels one unit is 0.1 pixels: 1001 is rounding, 1100 is not."""
    near = "<|box_start|>(100,100),(1001,500)<|box_end|>"
    path = write_lines(folder, turns(near, image="a.png"))
    (row,) = read(path, task="grounding", box_format="qwen2-vl")
    assert row["gt_box"] == pytest.approx([10, 5, 100, 25])
    far = near.replace("1001", "1100")
    text = faults_of(
        write_lines(folder, turns(far, image="a.png")), task="grounding", box_format="qwen2-vl"
    )
    assert "line 1" in text and "110.0" in text


def test_pixels_of_a_resized_image_are_only_read_if_they_are_said_to_be_of_the_whole(
    folder: Path,
) -> None:
    answer = '```json\n[{"bbox_2d": [10, 5, 60, 25], "label": "sheep"}]\n```'
    path = write_lines(folder, turns(answer, image="a.png"))
    with pytest.raises(ValidationError, match="box_frame: full if they are pixels"):
        read(path, task="grounding", box_format="qwen2.5-vl")
    with pytest.raises(ValidationError, match="box_frame says nothing without box_format"):
        read(path, task="grounding", box_frame="full")
    (row,) = read(path, task="grounding", box_format="qwen2.5-vl", box_frame="full")
    assert row["gt_box"] == [10, 5, 60, 25]


def swift(answer: str, question: str = "<image>Find the <ref-object>.", **objects: Any) -> Row:
    found = {"ref": ["sheep"], "bbox": [[10, 5, 60, 25]], **objects}
    return {**turns(answer, question), "images": ["a.png"], "objects": found}


def test_the_grounding_rows_of_ms_swift(folder: Path) -> None:
    several = [[10, 5, 60, 25], [1, 2, 3, 4]]
    path = write_lines(
        folder,
        swift("<bbox>"),
        swift("<bbox><bbox>", bbox=several, bbox_type="real", image_id=[0, 0]),
        swift("<bbox>", bbox=[[0.1, 0.1, 0.6, 0.5]], bbox_type="norm1"),
        swift("click(start_box='<bbox>')", bbox=[[61, 22]]),
        swift("<bbox>", bbox=[[0.25, 0.5]], bbox_type="norm1"),
        swift("<ref-object><bbox>", "<image>Describe the image."),
    )
    found = read(path)
    assert {row["task"] for row in found} == {"grounding"}
    assert found[0]["prompt"] == "Find the sheep." and found[0]["gt_box"] == [10, 5, 60, 25]
    assert found[1]["gt_boxes"] == several and found[1]["gt_box"] is None
    assert found[2]["gt_box"] == pytest.approx([10, 5, 60, 25])
    assert found[3]["gt_point"] == [61, 22]
    assert found[4]["gt_point"] == [25, 25]
    assert found[5]["prompt"] == "Describe the image." and found[5]["gt_box"] == [10, 5, 60, 25]


def test_several_images_and_earlier_turns_stay_in_the_prompt(folder: Path) -> None:
    before = [
        {"role": "system", "content": "You find things."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A sheep."}]},
    ]
    again = {"role": "user", "content": [TEXT, {"type": "image"}, {"type": "text", "text": "?"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "[0.1, 0.2, 0.5, 0.6]"}]}
    images = {"images": ["b.png", "a.png"]}
    first = swift("<bbox>", "<image> <image> Find the <ref-object>.") | images
    path = write_lines(
        folder,
        {"messages": [*before, again, answer], **images},
        {"messages": [*before, again, answer], **images, "box_image": 0},
        first,
        {**first, "objects": {**first["objects"], "image_id": [1]}},
        turns("[0.1, 0.2, 0.5, 0.6]", "<image> or <image>?", **images),
        {**turns("[0.1, 0.2, 0.5, 0.6]", image="a.png"), "system": "Be brief."},
    )
    found = read(path, task="grounding", box_format="llava")
    shown = [
        [Path(row["image"]["path"]).name, *(Path(one["path"]).name for one in others)]
        for row in found
        for others in [row["more_images"] or []]
    ]
    a_first = ["a.png", "b.png"]
    assert shown == [a_first, a_first[::-1], a_first[::-1], a_first, a_first, ["a.png"]]
    assert [row["box_image"] for row in found] == [1, 0, 0, 1, 1, None]
    assert found[0]["prompt"] == f"{QUESTION}<image>?"
    assert [(turn["role"], turn["content"]) for turn in found[0]["history"]] == [
        ("system", "You find things."),
        ("user", "<image>What is it?"),
        ("assistant", "A sheep."),
    ]
    assert found[2]["prompt"] == "Find the sheep."  # images come first by default
    assert found[4]["prompt"] == "<image> or <image>?"
    assert found[5]["history"] == [{"role": "system", "content": "Be brief."}]


def test_an_earlier_turn_may_be_an_image_alone(folder: Path) -> None:
    say = {"role": "assistant", "content": "What is it to me?"}
    again = turns("A sheep.", "What is it?")["messages"]
    chat = [{"role": "user", "content": "<image>"}, say, *again]
    (found,) = read(write_lines(folder, {"messages": chat, "image": "a.png"}), task="vqa")
    assert [turn["content"] for turn in found["history"]] == ["<image>", "What is it to me?"]
    assert found["prompt"] == "What is it?"


def test_boxes_belong_to_the_image_that_the_row_names(folder: Path) -> None:
    """`box_image` beside `objects`, and `objects` without a box: tables give every row a struct."""
    two = {"images": ["a.png", "b.png"]}
    named = swift("<bbox>", "<image><image> Find the <ref-object>.") | two
    none = {"ref": ["sheep"], "bbox": None, "image_id": None}
    written = turns("[0.1, 0.2, 0.5, 0.6]", "<image><image> Find the <ref-object>.", objects=none)
    path = folder / "chats.parquet"
    rows = [{**named, "box_image": 1.0}, {**written, **two}, named]
    pq.write_table(pa.Table.from_pylist(rows), path)
    found = read(path, task="grounding", box_format="llava")
    assert [row["box_image"] for row in found] == [1, 1, 0]
    assert [Path(row["image"]["path"]).name for row in found] == ["b.png", "b.png", "a.png"]


def test_task_id_and_dataset_may_have_other_names(folder: Path) -> None:
    row = turns("A sheep.", image="a.png", kind="ocr", key=0, set="farm", colour="red")
    names = {"task": "kind", "id": "key", "dataset": "set"}
    (found,) = read(write_lines(folder, row), columns=names)
    assert (found["task"], found["source_row"], found["dataset"]) == ("ocr", "0", "farm")
    assert json.loads(found["extra"]) == {"colour": "red"}
    said = faults_of(write_lines(folder, row), task="ocr", columns={"id": "keys", "task": "kind"})
    assert "there is no column 'keys' (columns.id); the file has 'messages', 'image'," in said


def test_files_that_hold_no_rows_are_one_clear_error(folder: Path) -> None:
    path = folder / "chats.json"
    path.write_text('[\n{"messages": [}\n]')
    assert "not JSON: Expecting value: line 2" in faults_of(path, task="vqa")
    path.write_text("[]")
    assert "the dataset is empty" in faults_of(path, task="vqa")
    assert "the folder holds neither Parquet files nor" in faults_of(folder, task="vqa")
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert "the folder holds 2 splits" in faults_of(folder, task="vqa")


@pytest.mark.parametrize(("source", "ending"), [("messages", ".gz"), ("jsonl", ".zst")])
def test_a_compressed_file_is_refused_with_the_command_that_unpacks_it(
    folder: Path, source: str, ending: str
) -> None:
    plain = write_lines(folder, {"messages": []})
    path = plain.with_name(plain.name + ending)
    path.write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(InputError) as refused:
        if source == "messages":
            read(path)
        else:
            read_table(TableSource(source="jsonl", path=path), Request("train"))
    unpack = {".gz": "gunzip -k", ".zst": "unzstd"}[ending]
    assert refused.value.parts() == (
        f"cannot be read: the file is compressed ({ending})",
        str(path),
        f"unpack it, and give the unpacked file: {unpack} {path}",
    )


@pytest.mark.parametrize("reader", [read_json_lines, read_json_rows])
def test_a_pipe_is_read_whole(reader: Any) -> None:
    """It can be read only once: what was looked at is not lost."""
    rows = [{"n": n, "x": "y" * 100} for n in range(400)]  # several buffers, and less than a pipe
    out, into = os.pipe()
    os.write(into, ("\n" + "".join(json.dumps(row) + "\n" for row in rows)).encode())
    os.close(into)
    path = Path(f"/dev/fd/{out}")
    found = [row for _, row in reader(path, Faults(path))]
    os.close(out)
    assert found == rows


def test_a_fault_in_a_line_counts_columns_of_that_line(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"n": 1}\n{"n": \n{"n": 3}\n', "utf-8")
    faults = Faults(path)
    assert [row for _, row in read_json_lines(path, faults)] == [{"n": 1}, {"n": 3}]
    assert [(fault.place, fault.what) for fault in faults.found] == [
        ("line 2", "not JSON: Expecting value: line 1 column 7 (char 6)")
    ]


def test_json_lines_are_read_one_by_one(tmp_path: Path) -> None:
    path, long = tmp_path / "lines.jsonl", "x" * 50_000
    path.write_text("".join(json.dumps({"n": n, "x": long}) + "\r\n" for n in range(100)), "utf-8")
    tracemalloc.start()
    found = [(place, row["n"]) for place, row in read_json_rows(path, Faults(path))]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [(f"line {n + 1}", n) for n in range(100)]
    assert peak < 1_000_000 < path.stat().st_size
    with path.open("ab") as file:
        file.write(b'{"n": "\xff"}\n')
    with pytest.raises(InputError, match="line 101 is not UTF-8"):
        list(read_json_rows(path, Faults(path)))


def test_all_faults_of_a_file_are_reported_at_once_each_with_its_line(folder: Path) -> None:
    asked = {"role": "user", "content": QUESTION}
    bad: dict[str, Row] = {
        "its last turn is not the assistant's": {"messages": [asked], "image": "a.png"},
        "the prompt holds <image> more than once": turns(
            "A", "<image> and <image>", images=["a.png"]
        ),
        "it is there once, and the prompt has 2 images": turns(
            "A", "<image> here", images=["a.png", "b.png"]
        ),
        "1 place for images in the turns, and 2 images in the row": {
            "messages": parts({"type": "image"}, TEXT),
            "images": ["a.png", "b.png"],
        },
        "nothing is downloaded. Fetch it": turns("A", image="https://example.org/a.png"),
        "but line 1 has `messages`": {"conversations": share_gpt("A"), "image": "a.png"},
        "there is no chat": {"question": "?"},
        "the row has `messages` and `conversations`": {
            **turns("A", image="a.png"),
            "conversations": share_gpt("A"),
        },
        "there is no image": turns("A"),
        "turn 2 is of 'tool'": {
            "messages": [asked, {"role": "tool", "content": "A"}],
            "image": "a.png",
        },
        "turn 1 is no object": {"messages": ["Where?"], "image": "a.png"},
        "neither `role` nor `from`": {"messages": [{"content": "A"}], "image": "a.png"},
        "has no text in `content`": {
            "messages": [{"role": "user", "content": 3}],
            "image": "a.png",
        },
        "a part that is neither text nor image": {"messages": parts({"type": "video"})},
        "there is no question": {
            "messages": [{"role": "assistant", "content": "A"}],
            "image": "a.png",
        },
        "the last turn of the assistant is empty": turns(" ", image="a.png"),
        "<image> is in a turn of the system": {
            "messages": [{"role": "system", "content": "<image>"}, *turns("A")["messages"]],
            "image": "a.png",
        },
        "a data URL without base64": turns("A", image="data:image/png,abc"),
        "a data URL that is no base64": turns("A", image="data:image/png;base64,!!"),
        "`task` is 'detect'": turns("A", image="a.png", task="detect"),
        "`history` has turns of assistant": {
            "messages": [{"role": "assistant", "content": "A"}, *turns("A")["messages"]],
            "image": "a.png",
        },
        "`images` and `image`": turns("A", image="a.png", images=["b.png"]),
        "turn 2: <image> is in a turn of the assistant": {
            "messages": [asked, {"role": "assistant", "content": [{"type": "image"}, TEXT]}],
            "image": "a.png",
        },
        "turn 2 has `tool_calls`, which is not read": {
            "messages": [asked, {"role": "assistant", "content": "A", "tool_calls": [{"id": 1}]}],
            "image": "a.png",
        },
        "`system` is no text: ['Be brief.']": turns("A", image="a.png", system=["Be brief."]),
        "the row has `videos`": turns("A", image="a.png", videos=["v.mp4"]),
        "`gt_text` is no text: 5": {"messages": [asked], "image": "a.png", "gt_text": 5},
        "`gt_text` holds a character that is not text": {
            "messages": [asked],
            "image": "a.png",
            "gt_text": "\ud800",
        },
        "image of 3 bytes: it is not an image": turns("A", image="data:image/png;base64,AAAA"),
        "turn 1 is of ['user']": {
            "messages": [{"role": ["user"], "content": QUESTION}],
            "image": "a.png",
        },
        "turn 1 is of {'a': 1}": {
            "messages": [{"from": {"a": 1}, "value": QUESTION}],
            "image": "a.png",
        },
        "an image's address 'file://[a/b.png' is none": turns("A", image="file://[a/b.png"),
    }
    path = write_lines(folder, turns("A", image="a.png"), *bad.values())
    shown = faults_of(path, task="vqa")
    assert f"{len(bad)} faults" in shown and "nothing was written" in shown
    lines = shown.splitlines()
    for number, what in enumerate(list(bad)[:20], start=2):  # the first 20 are listed
        assert any(f"line {number}: " in line and what in line for line in lines), what
    with_last = write_lines(folder, turns("A", image="a.png"), *list(bad.values())[20:])
    shown = faults_of(with_last, task="vqa")
    assert [what for what in list(bad)[20:] if what not in shown] == []


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (turns("at the left", image="a.png"), "the answer has no box in the format llava"),
        (swift("<bbox><bbox>"), "<bbox> is in the turns 2 times, and `objects.bbox` has 1"),
        (swift("<bbox>", "<image>Find it."), "<ref-object> is in the turns 0 times"),
        (swift("A", "<image><ref-object> <bbox>"), "<bbox> stands before the answer"),
        (swift("<bbox>", bbox_type="norm1000"), "`objects.bbox_type` is 'norm1000'"),
        (swift("<bbox>", bbox=[[1, 2, 3]]), "neither four nor two numbers"),
        (swift("<bbox>", image_id=[1]), "the boxes are of image 1, and there are 1"),
        (swift("<bbox>", image_id=[True]), "no list with one number per box: [True]"),
        (swift("<bbox>", image_id=["0"]), "no list with one number per box: ['0']"),
        (swift("<bbox>", image_id=[0.7]), "holds a number that is not whole: [0.7]"),
        ({**swift("<bbox>", image_id=[0]), "box_image": 1}, "but the boxes are of image 0"),
        (
            {**swift("<bbox>"), "messages": turns("", "<ref-object> <bbox>")["messages"][:1]},
            "<bbox> stands before the answer",
        ),
        (swift("<bbox><bbox>", bbox=[[1, 2], [3, 4]]), "several points; one is read"),
        (swift("<bbox>", bbox=[[60, 5, 10, 25]]), "inverted or empty"),
        ({**swift("<bbox>"), "task": "vqa"}, "<bbox> is in the answer, but the task is vqa"),
        ({**swift("<bbox>"), "objects": [1]}, "`objects` is no object"),
    ],
)
def test_faults_of_boxes(folder: Path, row: Row, what: str) -> None:
    shown = faults_of(write_lines(folder, row), task="grounding", box_format="llava")
    assert "line 1: " in shown and what in shown


def test_a_folder_without_a_table_is_named(folder: Path) -> None:
    write_lines(folder, turns("A", image="a.png"))
    assert "give the path of the file itself" in faults_of(folder, task="vqa")


def test_a_box_without_a_format_is_never_guessed(folder: Path) -> None:
    path = write_lines(folder, turns("[0.1, 0.2, 0.5, 0.6]", image="a.png"))
    assert "nothing says how the box in the answer is written" in faults_of(path, task="grounding")
    assert "give one of ['grounding', 'ocr', 'vqa']" in faults_of(path, box_format="llava")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run with boxes and texts."""
    root = tmp_path_factory.mktemp("run")
    made = Run(synthetic_config(root, num_prompts=6, task=BOTH, min_margin=0.1), quiet=True)
    prepare_synthetic(made, "train", task=BOTH)
    sample_synthetic(made)
    score(made, "train")
    filter_lists(made, "train")
    return made


@pytest.mark.parametrize(
    ("to", "file"),
    [
        ("sft", "data"),
        ("trl", "data"),
        ("grpo", "data"),
        ("llamafactory", "train.jsonl"),
        ("ms-swift", "train.jsonl"),
    ],
)
def test_what_is_exported_is_read_again(run: Run, tmp_path: Path, to: str, file: str) -> None:
    """Question and image come back; the truth is the answer that the export calls best."""
    out = export(run, "train", tmp_path / "out", Wanted(to))
    settings = {"task": "ocr"} if "jsonl" in file else {}
    prompts = run.latest("prompts", "train").table().to_pylist()
    lists = {r["prompt_id"]: r for r in run.latest("preferences", "train").table().to_pylist()}
    asked = [row for row in prompts if to == "grpo" or row["prompt_id"] in lists]
    found = read(out / file, box_format="llava", **settings)
    assert len(found) == len(asked) > 6
    for row, before in zip(found, asked, strict=True):
        assert row["prompt"] == before["prompt"]
        assert row["image_sha256"] == before["image_sha256"]
        assert json.loads(row["extra"] or "{}")["prompt_id"] == before["prompt_id"]
        if to == "grpo":
            same = ("task", "dataset", "gt_box", "gt_text", "gt_boxes", "gt_point")
            assert {name: row[name] for name in same} == {name: before[name] for name in same}
            continue
        best = lists[before["prompt_id"]]
        answers = dict(zip(best["completions"], best["rewards"], strict=True))
        if row["task"] == "ocr":
            assert answers[row["gt_text"]] == max(best["rewards"])
        else:
            overlap = row["gt_box"][0] - before["gt_box"][0]
            assert abs(overlap) < 8 and row["gt_text"] is None


def test_several_images_and_earlier_turns_go_out_and_come_back(tmp_path: Path) -> None:
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", SIZE, colour).save(tmp_path / name)
    earlier = [("user", "<image>What is it?"), ("assistant", "A sheep.")]
    rows = []
    for index in range(8):
        asked = [*earlier, ("user", f"And number {index} in <image>?")]
        every = [*asked, ("assistant", f"[0.{index}0, 0.20, 0.80, 0.90]")]
        chat = [{"role": role, "content": text} for role, text in every]
        rows.append({"messages": chat, "images": ["b.png", "a.png"]})
    config = synthetic_config(tmp_path / "data", min_margin=0.01)
    chats = {"source": "messages", "path": write_lines(tmp_path, *rows), "task": "grounding"}
    source = MessagesSource(**chats, box_format="llava")
    run = Run(config.model_copy(update={"prepare": {"train": source}}), quiet=True)
    before = prepare(run, "train").table().to_pylist()
    sample_synthetic(run)
    score(run, "train")
    filter_lists(run, "train")
    asked_of = {row["prompt_id"]: row for row in before}
    for to, file in (("trl", "data"), ("llamafactory", "train.jsonl"), ("lists", "data")):
        out = export(run, "train", tmp_path / to, Wanted(to))
        if to == "lists":
            (table,) = (out / file).iterdir()
            first = pq.read_table(table).to_pylist()[0]
            origin = asked_of[first["prompt_id"]]
            assert [image["path"][-5:] for image in first["images"]] == ["b.png", "a.png"]
            assert first["box_image"] == 1 and first["history"] == origin["history"]
            continue
        found = read(out / file, task="grounding", box_format="llava")
        assert found
        for row in found:
            origin = asked_of[json.loads(row["extra"])["prompt_id"]]
            for name in ("prompt", "history", "box_image", "image_sha256", "more_image_facts"):
                assert row[name] == origin[name], (to, name)
            assert [(turn["role"], turn["content"]) for turn in row["history"]] == earlier
