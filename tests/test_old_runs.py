"""What older rules made is found again by today's stages: nothing is sampled, decoded or trained.

tests/old_runs holds one tiny run (tiny.yaml) for each set of rules that the program ever had, made
by the code of its time. Where today's fingerprints change, these tests fail: see CONTRIBUTING.md.
"""

import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perpo_pipeline import testbed
from perpo_pipeline.config.file import load_config
from perpo_pipeline.config.fingerprints import counted_settings
from perpo_pipeline.config.overrides import parse_set
from perpo_pipeline.evaluate.evaluate_model import evaluate
from perpo_pipeline.filter.filter_lists import filter_lists
from perpo_pipeline.prepare.collect import Prepared, Request
from perpo_pipeline.prepare.prepare_prompts import READERS, prepare
from perpo_pipeline.run import Run
from perpo_pipeline.sample.sample_prompts import sample
from perpo_pipeline.score.score_answers import score
from perpo_pipeline.status import model as status_model
from perpo_pipeline.store.artifacts import Version, input_of, open_version
from perpo_pipeline.store.finding import reuse_complete
from perpo_pipeline.store.writing import Recipe
from perpo_pipeline.train.reference import STAGE_VERSION as REFERENCE_VERSION
from perpo_pipeline.train.task import reuse_trained
from perpo_pipeline.vlm import inputs
from perpo_pipeline.vlm.inputs import find_model

RUNS = Path(__file__).parent / "old_runs"
NAMES = sorted(file.name.removesuffix(".tar.gz") for file in RUNS.glob("*.tar.gz"))
TODAY = NAMES[-1]
# The first engine's sums differ in their last digits: only what was drawn is found again.
FIRST_ENGINE = "1"
EVALUATIONS = ("base@test", "base-other-image@test", "perpo@test")


def run_of(name: str, folder: Path, *sets: str) -> Run:
    with tarfile.open(RUNS / f"{name}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    config = load_config(RUNS / "tiny.yaml", [parse_set(given) for given in sets])
    return Run(config.model_copy(update={"data_root": folder / "data"}))


def reference_of(run: Run, preferences: Version) -> Version | None:
    _, model = find_model(run.config.model, run.scratch)
    settings = counted_settings("reference", None, {**model, "forward": "shared-prefix"})
    inputs = {"preferences": preferences}
    recipe = Recipe("reference", "train", "reference", REFERENCE_VERSION, settings, inputs)
    return reuse_complete(run.place("reference", "train"), recipe)


@pytest.fixture(autouse=True)
def _no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model answers although the answers are there")

    monkeypatch.setattr("perpo_pipeline.inference.part_sampler.open_backend", refuse)


@pytest.fixture(autouse=True)
def _testbed_of_its_time(tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> None:
    """The scenes and the model of those runs: testbed_version 1, whatever is drawn today."""
    folder = tmp_path_factory.mktemp("rules") / "of"
    run = run_of("8", folder)
    samples = open_version(run.place("samples", "train")).manifest["settings"]

    def rendered(_: Any, request: Request) -> Prepared:
        prompts = open_version(run.place("prompts", request.split))
        return Prepared(prompts.table().to_pylist(), prompts.manifest["settings"])

    monkeypatch.setitem(READERS, "testbed", rendered)
    monkeypatch.setattr(testbed, "TESTBED_VERSION", 1)
    for module in (inputs, status_model):
        monkeypatch.setattr(module, "compute_identity", lambda *_: samples["model"])


def stages(run: Run, *, trains: bool) -> Iterator[tuple[str, str, Callable[[], Version | None]]]:
    """Each artifact with the stage that finds it, in order."""
    yield "prompts", "train", lambda: prepare(run, "train")
    yield "prompts", "test", lambda: prepare(run, "test")
    yield "samples", "train", lambda: sample(run, "train")
    yield "scores", "train", lambda: score(run, "train")
    yield "preferences", "train", lambda: filter_lists(run, "train")
    if trains:
        yield "reference", "train", lambda: reference_of(run, run.latest("preferences", "train"))
        yield "adapter", "sft", lambda: reuse_trained(run, "sft")
        yield "adapter", "perpo", lambda: reuse_trained(run, "perpo")


@pytest.mark.parametrize("name", NAMES)
def test_versions_of_every_older_rule_are_found_again(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(name, tmp_path)
    made = {path: path.read_bytes() for path in sorted(tmp_path.rglob("manifest.json"))}
    for artifact, variant, stage in stages(run, trains=name != FIRST_ENGINE):
        before = open_version(run.place(artifact, variant))
        found = stage()
        assert found is not None, f"{artifact} {variant} is not found again"
        assert found.path == before.path
        # The second time it is known, and nothing is compared or confirmed.
        again = stage()
        assert again is not None and again.path == before.path
    for evaluation in EVALUATIONS if name != FIRST_ENGINE else EVALUATIONS[:2]:
        answers = answers_of(run, evaluation)
        predictions = input_of(evaluate(run, evaluation), "predictions")
        assert predictions.variant == evaluation
        assert predictions.table()["completion"].to_pylist() == answers
    assert {path: path.read_bytes() for path in made} == made
    said = capsys.readouterr().err
    assert ("made by an older rule" in said) == (name != TODAY)
    if name == TODAY:
        assert "measured anew" not in said


def answers_of(run: Run, evaluation: str) -> list[str]:
    """What the run of the archive answered, by the name that the evaluation had then."""
    place = run.place("predictions", evaluation)
    place = place if place.is_dir() else run.place("predictions", evaluation.partition("@")[0])
    answers: list[str] = open_version(place).table()["completion"].to_pylist()
    return answers


def test_todays_fingerprints_are_those_that_the_newest_run_has(tmp_path: Path) -> None:
    """Whoever changes them on purpose adds a rule and a run: see tools/old_run.py."""
    run = run_of(TODAY, tmp_path)
    for artifact, variant, stage in stages(run, trains=True):
        before = open_version(run.place(artifact, variant)).fingerprint
        found = stage()
        advice = (
            f"the fingerprint of {artifact} changed: add what that means to store/old_rules.py, "
            "then `python -m tools.old_run` (CONTRIBUTING.md)"
        )
        assert found is not None and found.fingerprint == before, advice
        assert not (run.place(artifact, variant) / "same.json").is_file(), advice


def test_a_changed_setting_is_not_found_under_an_older_rule(tmp_path: Path) -> None:
    run = run_of("4", tmp_path, "sample.temperature=0.7")
    prepare(run, "train")
    with pytest.raises(AssertionError, match="a model answers"):
        sample(run, "train")


def test_scores_that_are_another_today_are_made_anew(tmp_path: Path) -> None:
    """What older scores hold is compared with what today's stage measures."""
    run = run_of("4", tmp_path)
    prepare(run, "train")
    old = open_version(run.place("scores", "train"))
    rows = old.table().to_pylist()
    rows[0]["reward"] = 0.123
    part = old.parts()[0]
    schema = pq.read_schema(part)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), part)
    assert score(run, "train").path != old.path
    assert open_version(run.place("scores", "train")).path != old.path


def test_a_version_that_was_begun_under_an_older_rule_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of("4", tmp_path)
    prepare(run, "train")
    begun = open_version(run.place("scores", "train")).path
    (begun / "manifest.json").unlink()
    made = score(run, "train")
    assert made.path != begun
    said = capsys.readouterr().err
    assert "left behind" in said and str(begun) in said


def made_later(version: Version) -> None:
    file = version.path / "manifest.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps({**manifest, "created_at": "2999-01-01T00:00:00Z"}))


def test_a_version_whose_input_was_retried_since_is_not_found(tmp_path: Path) -> None:
    """An older fingerprint counted those of its inputs alone, not which of their prompts failed."""
    run = run_of("2", tmp_path)
    made_later(prepare(run, "train"))
    samples = sample(run, "train")  # prompts cannot be retried, only made again, as they were
    assert samples.path == open_version(run.place("samples", "train")).path
    made_later(samples)
    old = open_version(run.place("scores", "train")).path
    assert score(run, "train").path != old
