"""The sources as settings and as commands."""

from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from prepare.refer_tree import Tree

from perpo_pipeline import cli
from perpo_pipeline.config.sources import (
    SOURCE_MODELS,
    SOURCE_NAMES,
    LmmsLabSource,
    ReferSource,
    source_files,
)
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.prepare.prepare_prompts import READERS
from perpo_pipeline.store.artifacts import open_version

CONFIG = """
run: r
prepare:
  train: {source: testbed, num_prompts: 2}
  test: {source: testbed, num_prompts: 2}
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(CONFIG)
    tree = Tree(tmp_path / "refer")
    for name in ("refcoco", "refcoco+", "refcocog"):
        for index in range(4):
            tree.add(name, "train", index, f"{name} {index}")
        tree.add(name, "val", 9, "a", "b")
    tree.write()
    return tree


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main([*arguments, "--config", "r.yaml"])
    return int(exit_.value.code or 0)


def test_the_command_takes_equal_amounts_from_refers_folders(tree: Tree) -> None:
    assert (
        run(
            "prepare",
            "refer",
            "refer",
            "--split",
            "train",
            "--per-dataset",
            "3",
            "--image-root",
            "refer/train2014",
            "--quiet",
        )
        == 0
    )
    rows = open_version(Path("data/r/prompts/train")).table()["dataset"].to_pylist()
    assert rows == ["refcoco_train"] * 3 + ["refcoco+_train"] * 3 + ["refcocog_train"] * 3


def test_lists_are_given_as_yaml(tree: Tree) -> None:
    assert (
        run(
            "prepare",
            "refer",
            "refer",
            "--split",
            "mine",
            "--set",
            "prepare.mine.datasets=[refcoco, refcocog]",
            "--set",
            "prepare.mine.splits=[train, val]",
            "--set",
            "prepare.mine.split_by={refcocog: umd}",
            "--set",
            "prepare.mine.leave_out_evaluated=false",
            "--image-root",
            "refer/train2014",
            "--quiet",
        )
        == 0
    )
    settings = open_version(Path("data/r/prompts/mine")).manifest["settings"]
    assert settings["datasets"] == ["refcoco", "refcocog"]
    assert (settings["splits"], settings["leave_out_evaluated"]) == (["train", "val"], [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "refr", "x"], "there is no source 'refr'"),
        (["prepare", "refr", "x"], ", ".join(SOURCE_NAMES)),
        (["prepare", "refer", "refer"], "prepare.train.image_root: is required"),
        (["prepare", "refer", "refer"], "is required (--image-root)\n  where: --image-root\n"),
        (["prepare", "jsonl"], "prepare.train.path: is required (PATH)"),
        (
            ["prepare", "fox", "x.json", "--per-dataset", "3"],
            "per_dataset (--per-dataset): source fox has no such",
        ),
        (["prepare", "jsonl", "x.jsonl", "--task", "orc"], "prepare.train.task (--task): Input"),
        (
            ["prepare", "jsonl", "x.jsonl", "--split", "../x"],
            "prepare.../x (--split): a name has letters, digits, '.', '_' and '-', and begins with",
        ),
        (["prepare", "jsonl", "x.jsonl", "--split", ""], "(--split): a name has letters"),
        (
            ["prepare", "--split", "testA", "--per-dataset", "3"],
            "prepare.testA (--split): names no source; one of testbed, ",
        ),
        (["prepare", "r.yaml"], "give the source first: perpo prepare SOURCE r.yaml, with one of"),
        (["prepare", "no/ok.jsonl"], "give the source first: perpo prepare jsonl no/ok.jsonl"),
        (["prepare", "jsonl", "no/ok.jsonl"], "correct the path, or fetch the file"),
        (
            [
                "prepare",
                "refer",
                "refer",
                "--image-root",
                ".",
                "--set",
                "prepare.train.split_by=umd",
            ],
            "prepare.train.split_by (--set prepare.train.split_by=umd): Input should be a valid "
            "dictionary",
        ),
        (
            [
                "prepare",
                "refer",
                "refer",
                "--image-root",
                ".",
                "--set",
                "prepare.train.datasets=[refclef]",
            ],
            "prepare.train.datasets.0 (--set prepare.train.datasets=[refclef]): Input should be "
            "'refcoco'",
        ),
        (
            [
                "prepare",
                "refer",
                "refer",
                "--image-root",
                ".",
                "--set",
                "prepare.train.splits=[val, val]",
            ],
            "a name is given twice",
        ),
        (["prepare", "--image-root", "x"], "--image-root: these options need exactly one split"),
        (["prepare", "--per-dataset", "3"], "--per-dataset: these options need exactly one split"),
    ],
)
def test_a_wrong_flag_is_one_message(
    tree: Tree, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err and not Path("data").exists()


def test_a_split_has_the_name_that_refer_gives_it(tree: Tree) -> None:
    assert (
        run(
            "prepare",
            "testbed",
            "--split",
            "testA",
            "--set",
            "prepare.testA.num_prompts=2",
            "--quiet",
        )
        == 0
    )
    assert open_version(Path("data/r/prompts/testA")).manifest["rows"] == 2


def test_a_flag_changes_one_setting_of_the_files_source(tree: Tree) -> None:
    Path("r.yaml").write_text(
        "run: r\nsample: {split: train}\neval: {splits: [train]}\nprepare:\n"
        "  train: {source: refer, path: refer, image_root: refer/train2014, per_dataset: 2}\n"
    )
    assert run("prepare", "--split", "train", "--per-dataset", "1", "--quiet") == 0
    assert open_version(Path("data/r/prompts/train")).manifest["rows"] == 3


def test_the_help_lists_every_layout(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["prepare", "--help"])
    shown = capsys.readouterr().out
    for name in SOURCE_NAMES:
        assert f"\n  {name} " in shown, name
    assert shown.count("  xyxy px") == 2 and shown.count("  xywh px") == 4
    assert shown.count("  box, unit") == 6 and shown.count("  cxcywh norm") == 1


def test_the_plan_names_the_files_that_matter(
    tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("r.yaml").write_text(
        CONFIG + "  mine: {source: refer, path: refer, image_root: refer/train2014}\n"
        "  page: {source: fox, path: p.json}\n"
    )
    cli.app(args=["make-rules", "--config", "r.yaml"], standalone_mode=False)
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("SOURCES_")]
    named = {name: files.split() for name, _, files in (line.partition(" := ") for line in lines)}
    assert "refer/refcocog/refs(umd).p" in named["SOURCES_mine"]
    assert "refer/refcoco+/instances.json" in named["SOURCES_mine"]
    assert named["SOURCES_page"] == ["p.json"] and len(named["SOURCES_mine"]) == 6


def test_files_of_a_pattern_and_a_folder(tmp_path: Path) -> None:
    for name in ("d/val-0.parquet", "d/testA-0.parquet", "d/readme.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for path, names in [
        ("d", ["testA-0", "val-0"]),
        ("d/val-*.parquet", ["val-0"]),
        ("*/testA*", ["testA-0"]),
    ]:
        source = LmmsLabSource(source="lmms-lab", path=tmp_path / path)
        assert [file.stem for file in source_files(source)] == names
    source = LmmsLabSource(source="lmms-lab", path=tmp_path / "d/*x***y")
    with pytest.raises(ConfigError, match="this is no pattern: Invalid pattern"):
        source_files(source)


def test_every_source_has_a_reader() -> None:
    """And each reader has settings: the two places cannot drift apart."""
    assert list(READERS) == list(SOURCE_NAMES)
    for model in SOURCE_MODELS:
        for name in get_args(model.model_fields["source"].annotation):
            (argument, *_) = get_type_hints(READERS[name]).values()
            assert argument is model, name


def test_every_setting_of_a_source_has_a_description() -> None:
    for model in SOURCE_MODELS:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"


def test_the_shipped_split_files_are_the_published_ones() -> None:
    source = ReferSource(source="refer", path=Path("r"), image_root=Path("i"))
    assert [source.refs_file(name).name for name in source.datasets] == [
        "refs(unc).p",
        "refs(unc).p",
        "refs(umd).p",
    ]
