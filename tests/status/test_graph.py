"""The graph of a run is what its stages record as their inputs."""

import subprocess
import sys

from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.status.graph import ORDER, STAGES, Node, nodes

SPLITS = {
    "train": {"source": "testbed", "num_prompts": 4},
    "test": {"source": "testbed", "num_prompts": 4},
}


def config(**sections: object) -> RunConfig:
    return RunConfig.model_validate({"run": "r", "prepare": SPLITS, **sections})


def names(found: list[Node]) -> list[str]:
    return [node.name for node in found]


def test_a_run_has_each_artifact_after_what_it_needs() -> None:
    found = nodes(config(train={"methods": {"sft": {}, "perpo": {}}}))
    assert names(found)[:7] == [
        "prompts/train",
        "prompts/test",
        "samples/train",
        "scores/train",
        "preferences/train",
        "adapter/sft",
        "adapter/perpo",
    ]
    assert names(found)[-1] == "report/default" and len(found) == 8 + 2 * 9
    seen: set[tuple[str, str]] = set()
    for node in found:
        assert seen.issuperset(node.needs), node
        seen.add(node.key)
    order = [STAGES.index(node.stage) for node in found]
    assert order == sorted(order) and {node.artifact for node in found} < set(ORDER)


def test_an_evaluation_of_a_trained_model_needs_its_adapter_and_the_prompts_of_its_split() -> None:
    found = {node.name: node for node in nodes(config(train={"methods": {"sft": {}}}))}
    assert found["predictions/base@test"].needs == (("prompts", "test"),)
    wrong = found["predictions/sft-blank-image@test"]
    assert wrong.needs == (("prompts", "test"), ("adapter", "sft"))
    assert found["metrics/sft@test"].needs == (("predictions", "sft@test"),)
    assert ("metrics", "sft-blank-image@test") in found["report/default"].needs


def test_a_report_needs_the_adapters_that_are_evaluated() -> None:
    train = {"methods": {"sft": {}, "perpo": {}}}
    report = nodes(config(train=train, eval={"models": ["base", "perpo"]}))[-1]
    adapters = [variant for artifact, variant in report.needs if artifact == "adapter"]
    assert report.artifact == "report" and adapters == ["perpo"]


def test_every_seed_is_an_adapter_of_its_own() -> None:
    found = names(nodes(config(train={"methods": {"sft": {}}, "seeds": [1, 2]})))
    assert {"adapter/sft-seed1", "adapter/sft-seed2", "metrics/sft-seed2@test"} <= set(found)


def test_released_lists_are_samples_and_scores_of_prepare() -> None:
    split = {"source": "perpo-json", "path": "lists.json"}
    found = {n.name: n for n in nodes(config(prepare={**SPLITS, "train": split}))}
    made = [found[name].stage for name in ("samples/train", "scores/train", "preferences/train")]
    assert made == ["prepare", "prepare", "filter"]
    assert found["scores/train"].words == ("prepare", "--split", "train")


def test_a_node_names_the_command_that_makes_it() -> None:
    found = {node.name: node.words for node in nodes(config())}
    assert found["prompts/test"] == ("prepare", "--split", "test")
    assert found["preferences/train"] == ("filter",)
    assert found["adapter/perpo"] == ("train", "--method", "perpo")
    assert found["metrics/base@test"] == ("eval", "--evaluation", "base@test")


def test_the_graph_imports_nothing_heavy() -> None:
    code = "import sys, perpo_pipeline.status.graph; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"pyarrow", "torch", "numpy", "polars"} & set(done.stdout.split())
