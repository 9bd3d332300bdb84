"""A split of several sources: their rows one after the other, and what is wrong by its entry."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from perpo_pipeline.commands.make_rules import rules
from perpo_pipeline.config.file import load_config
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.planning.amounts import task_by_task
from perpo_pipeline.planning.notes import note_of_tasks
from perpo_pipeline.prepare.prepare_prompts import prepare, survey
from perpo_pipeline.run import Run
from perpo_pipeline.status.check import Check
from perpo_pipeline.status.expected import differences
from perpo_pipeline.store.artifacts import open_version

PAGES = "{source: jsonl, path: pages.jsonl, task: ocr}"
SCENES = "{source: testbed, num_prompts: 3}"
Load = Callable[..., RunConfig]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads a run whose `train` has these sources; a file of two pages is beside it."""
    monkeypatch.chdir(tmp_path)
    write_pages("AB\nCD", "EF")

    def load(*sources: str, **sets: object) -> RunConfig:
        lines = "".join(f"\n    - {source}" for source in sources)
        Path("r.yaml").write_text(f"run: r\nprepare:\n  train:{lines}\n  test: {SCENES}\n")
        return load_config(Path("r.yaml"), {k.replace("__", "."): v for k, v in sets.items()})

    return load


def write_pages(*texts: str) -> None:
    Image.new("RGB", (32, 32), "white").save("page.png")
    rows = [{"image": "page.png", "prompt": "Read.", "gt_text": text} for text in texts]
    Path("pages.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_rows_follow_each_other_and_keep_their_places(load: Load) -> None:
    made = prepare(Run(load(SCENES, PAGES), quiet=True), "train")
    rows = made.table(columns=["task", "place", "source_row"]).to_pylist()
    assert [row["task"] for row in rows] == ["grounding"] * 3 + ["ocr"] * 2
    assert [row["place"] for row in rows[2:4]] == ["testbed, scene 2", "pages.jsonl:1"]
    of = made.manifest["settings"]["of"]
    assert [one["source"] for one in of] == ["testbed", "jsonl"]
    assert "file_sha256" in of[1]
    assert made.manifest["notes"]["paths"] == [None, str(Path("pages.jsonl").resolve())]


def test_a_list_of_one_source_is_that_source(load: Load) -> None:
    listed = load(SCENES)
    one = prepare(Run(listed, quiet=True), "train").fingerprint
    Path("r.yaml").write_text(f"run: r\nprepare: {{train: {SCENES}, test: {SCENES}}}\n")
    assert load_config(Path("r.yaml")) == listed
    assert prepare(Run(load_config(Path("r.yaml")), quiet=True), "train").fingerprint == one
    with pytest.raises(ConfigError, match=r"prepare\.train\.num_prompts: Input should be a valid"):
        load("{source: testbed, num_prompts: some}")


def test_each_source_counts_in_the_fingerprint(load: Load) -> None:
    first = prepare(Run(load(SCENES, PAGES), quiet=True), "train")
    more = Run(load(SCENES, PAGES, prepare__train__0__num_prompts=4), quiet=True)
    assert prepare(more, "train").manifest["rows"] == 6
    back = Run(load(SCENES, PAGES), quiet=True)
    assert prepare(back, "train").fingerprint == first.fingerprint
    assert prepare(Run(load(PAGES, SCENES), quiet=True), "train").fingerprint != first.fingerprint


def test_status_names_the_entry_that_differs(load: Load) -> None:
    made = prepare(Run(load(SCENES, PAGES), quiet=True), "train")
    manifest = open_version(made.path).manifest
    same = load(SCENES, PAGES)
    assert differences(("prompts", "train"), manifest, same) == []
    other = load("{source: testbed, num_prompts: 2}", PAGES)
    (found,) = differences(("prompts", "train"), manifest, other)
    assert str(found) == "prepare.train.0.num_prompts 3, the configuration says 2"
    third = load(SCENES, PAGES, "{source: jsonl, path: more.jsonl}")
    assert differences(("prompts", "train"), manifest, third)
    assert differences(("prompts", "train"), manifest, load(SCENES))
    assert Check(same).find([("prompts", "train")]).silent == {}
    write_pages("AB\nCD", "other")
    assert list(Check(same).find([("prompts", "train")]).silent) == ["prompts/train source"]


def test_make_and_the_plan_know_every_source(load: Load) -> None:
    config = load(SCENES, PAGES)
    assert "SOURCES_train := pages.jsonl" in list(rules(config))
    found = survey(Run(config, quiet=True), "train", 2)
    assert found.prompts == 5
    assert [row["task"] for row in found.rows] == ["grounding"] * 2 + ["ocr"] * 2
    in_turn = task_by_task(found.rows)  # a trial of the first two rows has both tasks
    assert [row["task"] for row in in_turn] == ["grounding", "ocr"] * 2
    assert task_by_task(found.rows[:2]) == found.rows[:2]
    (note,) = note_of_tasks(in_turn)
    assert "grounding and ocr" in note and note_of_tasks(found.rows[:2]) == []


def test_the_same_prompt_of_two_sources_is_an_error(load: Load) -> None:
    with pytest.raises(InputError, match=r"two sources have the same prompt: testbed, scene 0 \("):
        prepare(Run(load(SCENES, SCENES), quiet=True), "train")


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("{source: testbed}", "prepare.train.1.num_prompts: is required"),
        ("{source: testbed, num_prompts: 0}", "prepare.train.1.num_prompts: Input should be gre"),
        ("{source: testbed, number: 3}", "prepare.train.1.number: no such setting"),
        (
            "{source: testbed, num_prompts: 2, unit: px}",
            "prepare.train.1.unit: source testbed has no such setting",
        ),
        ("{source: jsonl, path: a, gt_unit: px}", "prepare.train.1.gt_unit was renamed: use"),
        ("{source: testbd}", "prepare.train.1: there is no source 'testbd'; did you mean"),
        ("{num_prompts: 2}", "prepare.train.1: names no source"),
        ("scenes", "prepare.train.1: "),
        ("{source: perpo-json, path: a}", "prepare.train: perpo-json also has answers"),
    ],
)
def test_a_fault_is_named_by_its_entry(load: Load, source: str, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(SCENES, source)
    assert fault in str(caught.value)


def test_an_option_for_one_source_does_not_fit_a_list(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"a list of 2\n.*--set prepare\.train\.0\.KEY"):
        load(SCENES, PAGES, prepare__train__num_prompts=3)
    with pytest.raises(ConfigError, match="a list of 2"):
        load(SCENES, PAGES, prepare__train__2__num_prompts=3)
