"""Artifacts that were removed and made again with other content under the same fingerprint."""

import json
import shutil
from pathlib import Path

import pytest
from synthetic_run import make_synthetic_run, prepare_synthetic, sample_synthetic

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.filter.filter_lists import filter_lists
from perpo_pipeline.run import Run
from perpo_pipeline.score.score_answers import score
from perpo_pipeline.status.states import State, states
from perpo_pipeline.store.artifacts import MANIFEST, Version, input_of, open_version
from perpo_pipeline.store.finding import version_of
from perpo_pipeline.store.inspect import describe
from perpo_pipeline.store.made_from import content_of, is_of
from perpo_pipeline.store.writing import Recipe, open_writer

ROW = {"prompt_id": "a", "sample_id": 0, "reward": 0.5, "parse_ok": True, "box": None}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_synthetic_run(tmp_path, methods=("perpo",))


def state_of(run: Run, name: str) -> State:
    return next(one for one in states(run.config) if one.node.name == name)


def make_again(run: Run, seed: int) -> Version:
    """Remove the samples, and draw them with another seed, which no setting names."""
    shutil.rmtree(run.config.run_dir / "samples")
    return sample_synthetic(run, seed)


def test_scores_of_samples_that_were_drawn_again_are_not_taken(run: Run) -> None:
    scores = run.latest("scores", "train")
    before = {path.name: path.read_bytes() for path in scores.path.iterdir() if path.is_file()}
    samples = make_again(run, seed=2)
    assert samples.fingerprint == scores.manifest["inputs"]["samples"]["fingerprint"]
    why = ["made from samples/train as it was before it was made again"]
    assert (state_of(run, "scores/train").state, state_of(run, "scores/train").why) == (
        "stale",
        why,
    )
    assert state_of(run, "adapter/perpo").why == ["follows scores/train"]
    with pytest.raises(ArtifactError, match="the samples as they were before they were made again"):
        filter_lists(run, "train")
    anew = score(run, "train")
    assert anew.path.name.startswith(f"{scores.fingerprint}-")
    assert anew.table() != scores.table()
    after = {path.name: path.read_bytes() for path in scores.path.iterdir() if path.is_file()}
    assert after == before  # nothing overwrites a version
    lists = filter_lists(run, "train")
    assert state_of(run, "preferences/train").state == "current"
    drawn = samples.table()["completion"].to_pylist()
    assert {text for one in lists.table()["completions"].to_pylist() for text in one} <= {*drawn}
    # A second time the version beside is found, not made, and also where the first was removed
    # (`perpo gc`); with the first samples the first one is.
    assert score(run, "train").path == anew.path
    assert "samples/train" in describe(scores.path) and "(made again since)" in describe(
        scores.path
    )
    kept = scores.path.rename(run.config.run_dir / "aside")
    assert score(run, "train").path == anew.path
    assert state_of(run, "preferences/train").state == "current"
    kept.rename(scores.path)
    make_again(run, seed=1)
    assert score(run, "train").path == scores.path
    assert filter_lists(run, "train").path.name == lists.fingerprint


def test_prompts_whose_images_have_another_place_are_the_same(run: Run) -> None:
    """A data folder that moved: its paths are in the table, and change no result."""
    samples = run.latest("samples", "train")
    prompts = input_of(samples, "prompts")
    table = prompts.table().to_pylist()
    shutil.rmtree(prompts.path)
    recipe = Recipe("prompts", "train", "prepare", 1, {})
    with open_writer(prompts.path.parent, recipe) as writer:
        writer.write_part(0, [row | {"place": "moved"} for row in table])
        moved = writer.finish()
    manifest = moved.manifest | {"fingerprint": prompts.fingerprint}
    assert is_of(samples.manifest["inputs"]["prompts"], Version(moved.path, manifest))


def test_lists_with_earlier_ones_that_were_made_again_are_stale(run: Run, tmp_path: Path) -> None:
    earlier = run.latest("preferences", "train")
    config = run.config.model_copy(
        update={
            "run": "second",
            "filter": run.config.filter.model_copy(
                update={"earlier": earlier.path.parent, "keep_earlier": 1.0}
            ),
        }
    )
    second = Run(config, quiet=True)
    prepare_synthetic(second, "train")
    sample_synthetic(second, 3)
    score(second, "train")
    filter_lists(second, "train")
    assert state_of(second, "preferences/train").state == "current"
    make_again(run, seed=2)
    score(run, "train")
    filter_lists(run, "train")
    shown = state_of(second, "preferences/train")
    assert shown.why == ["made from earlier lists as they were before they were made again"]
    filter_lists(second, "train")
    assert state_of(second, "preferences/train").state == "current"


def test_samples_drawn_again_with_the_same_content_are_the_same(run: Run) -> None:
    make_again(run, seed=1)
    assert state_of(run, "metrics/perpo@test").state == "current"


def test_a_record_without_content_is_taken_as_before(run: Run) -> None:
    file = run.latest("scores", "train").path / MANIFEST
    manifest = json.loads(file.read_text())
    del manifest["inputs"]["samples"]["content"]
    file.write_text(json.dumps(manifest))
    make_again(run, seed=2)
    assert state_of(run, "scores/train").state == "current"


def with_weights(root: Path, weights: bytes, log: float) -> Version:
    """An adapter: its table is a log, what other stages read are its weights."""
    shutil.rmtree(root, ignore_errors=True)
    with open_writer(root, Recipe("scores", "train", "score", 1, {})) as writer:
        (writer.path / "adapter_model.safetensors").write_bytes(weights)
        writer.write_part(0, [ROW | {"reward": log}])
        return writer.finish()


def test_of_an_adapter_the_weights_count_and_not_its_log(tmp_path: Path) -> None:
    first = content_of(with_weights(tmp_path, b"one", 0.1))
    assert content_of(with_weights(tmp_path, b"one", 0.9)) == first
    assert content_of(with_weights(tmp_path, b"two", 0.1)) != first


def test_a_version_begun_from_earlier_inputs_is_not_gone_on_with(tmp_path: Path) -> None:
    def recipe(weights: bytes) -> Recipe:
        inputs = {"adapter": with_weights(tmp_path / "adapter", weights, 0.1)}
        return Recipe("scores", "train", "score", 1, {}, inputs)

    root = tmp_path / "scores"
    with pytest.raises(KeyboardInterrupt), open_writer(root, recipe(b"one")) as writer:
        writer.write_part(0, [ROW])
        raise KeyboardInterrupt
    other = recipe(b"two")
    with open_writer(root, other) as writer:
        assert not writer.has_part(0) and writer.path.parent == root
        writer.write_part(0, [ROW | {"reward": 0.7}])
        made = writer.finish()
    assert version_of(root, other) == open_version(root)
    assert made.table()["reward"].to_pylist() == [0.7]
    first = recipe(b"one")
    assert version_of(root, first) is None
    with open_writer(root, first) as writer:
        assert writer.has_part(0)
