"""The calls of a run, and what follows from them: Make's rules and the table of the stages."""

import re
from pathlib import Path

import pytest

from perpo_pipeline.commands.make_rules import rules
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.status.calls import calls
from perpo_pipeline.status.graph import STAGES, nodes

ROOT = Path(__file__).parents[2]
SPLITS = {
    "train": {"source": "testbed", "num_prompts": 4},
    "test": {"source": "testbed", "num_prompts": 4},
}
RELEASED = {**SPLITS, "train": {"source": "perpo-json", "path": "my lists(1).json"}}


def config(**sections: object) -> RunConfig:
    methods = {"methods": {"sft": {}, "perpo": {}}}
    return RunConfig.model_validate({"run": "r", "prepare": SPLITS, "train": methods, **sections})


def test_every_node_is_made_by_one_call_after_those_that_make_what_it_needs() -> None:
    for settings in (config(), config(prepare=RELEASED)):
        made: list[tuple[str, str]] = []
        for call in calls(settings):
            assert set(call.needs) <= set(made)
            made += [node.key for node in call.made]
        assert sorted(made) == sorted(node.key for node in nodes(settings))


def test_a_call_evaluates_a_model_on_all_its_splits_and_images() -> None:
    found = calls(config(eval={"splits": ["test", "train"], "conditions": ["blank-image"]}))
    names = [call.names for call in found if call.stage == "eval"]
    assert names == [
        (f"{model}@test", f"{model}@train", f"{model}-blank-image@test")
        for model in ("base", "sft", "perpo")
    ]
    assert [call.names for call in found if call.stage == "train"] == [("sft",), ("perpo",)]
    assert [call.names for call in found if call.stage in ("sample", "report")] == [(), ()]


def test_released_lists_are_made_with_their_prompts() -> None:
    found = calls(config(prepare=RELEASED))
    assert [node.name for node in found[0].made] == [
        "prompts/train",
        "samples/train",
        "scores/train",
    ]
    assert found[0].names == ("train",) and {"sample", "score"}.isdisjoint(
        call.stage for call in found
    )


def test_make_gets_a_rule_for_each_call() -> None:
    plain = {**RELEASED, "train": {**RELEASED["train"], "path": "lists(1).json"}}
    assert "SOURCES_train := lists(1).json" in list(rules(config(prepare=plain)))
    lines = list(rules(config(prepare=RELEASED)))  # whose name has a space: two files, for Make
    assert "SOURCES_train := " in lines and "sample: " in lines
    where = lines.index("\t$(call perpo_filter,)")
    assert lines[where - 1] == (
        "$(DATA)/preferences/train/current &: $(DATA)/scores/train/current $(SETTINGS)"
    )
    assert (
        "$(wildcard $(SOURCES_train)) $(SETTINGS)"
        in lines[lines.index("\t$(call perpo_prepare,train)") - 1]
    )
    called = re.findall(r"\$\(call perpo_(\w+)", "\n".join(lines))
    assert len(called) == len(calls(config(prepare=RELEASED)))


def test_each_stage_has_a_command_for_make() -> None:
    files = sorted((ROOT / "stages").glob("[0-9]*.mk"))
    assert [file.stem.partition("_")[2] for file in files] == list(STAGES)
    for file, stage in zip(files, STAGES, strict=True):
        assert re.search(rf"^perpo_{stage} = @\$\(PERPO\) {stage} ", file.read_text(), re.MULTILINE)


def test_the_table_of_the_stages_is_the_graph() -> None:
    text = (ROOT / "stages/README.md").read_text()
    rows = re.findall(r"^\| (\w+) \| (.*) \| (.*) \|$", text, flags=re.MULTILINE)[1:]
    assert [row[0] for row in rows] == list(STAGES)
    every = [*nodes(config()), *nodes(config(prepare=RELEASED))]
    above: dict[str, set[str]] = {}
    for node in every:
        inputs = {artifact for artifact, _ in node.needs}
        above[node.artifact] = inputs.union(*(above[artifact] for artifact in inputs))
    for stage, reads, writes in rows:
        own = [node for node in every if node.stage == stage]
        made = {node.artifact for node in own}
        needed = {artifact for node in own for artifact, _ in node.needs} - made
        lineage = set().union(*(above[node.artifact] for node in own)) | {"prompts"}
        assert set(re.findall(r"`([a-z]+)", writes)) - {"reference"} == made, stage
        assert needed <= set(re.findall(r"`([a-z]+)", reads)) <= lineage, stage


@pytest.mark.parametrize("folder", ["my data", "a#b", "it's", "data(1)", "$HOME"])
def test_a_folder_that_make_cannot_name_is_refused_with_what_to_use(folder: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot have the run's folder[\s\S]*use: perpo run;"):
        list(rules(config(data_root=folder)))
    with pytest.raises(ConfigError, match="use: perpo iterate;"):
        list(rules(config(data_root=folder, rounds={})))
    assert next(rules(config(data_root="/daten/ä_1"))) == "DATA := /daten/ä_1/r"
