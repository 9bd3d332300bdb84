"""Ctrl-C and SIGTERM lose nothing that is whole; what goes on ends with the same bytes.

The signals are real and reach a real process, at a chosen call of the backend or step.
"""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from interrupting import forked, perpo_with_signal

from perpo_pipeline.store.artifacts import Version, open_version

CONFIG = """
run: k
model: {id: testbed, dtype: float32, device: cpu}
prepare:
  train: {source: testbed, num_prompts: 10}
  test: {source: testbed, num_prompts: 5}
sample: {num_samples: 4, max_new_tokens: 24, batch_size: 2, prompts_per_part: 8}
filter: {min_margin: 0.01}
train:
  batch_size: 2
  learning_rate: 1.0e-3
  lora: {rank: 2, alpha: 4}
  methods: {perpo: {beta: 1.0}}
eval: {max_new_tokens: 24, batch_size: 2, prompts_per_part: 5, models: [base], conditions: []}
"""
STAGES = ["prepare", "sample", "score", "filter", "train", "eval"]


def run_all(stages: list[str]) -> None:
    """Run the stages one after another in this process, without a signal."""
    from perpo_pipeline import cli
    from perpo_pipeline.train import reference

    reference.LISTS_PER_CALL = 2
    for stage in stages:
        with pytest.raises(SystemExit) as ended:
            cli.main([stage, "--config", "k.yaml"])
        assert ended.value.code == 0, stage


class Place:
    """A folder with a run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "k.yaml").write_text(CONFIG)

    def perpo(self, *arguments: str, **signalled: Any) -> tuple[int, str]:
        """Run a command as `perpo_with_signal` does; returns its exit code and stderr."""
        return perpo_with_signal(*arguments, "--config", "k.yaml", folder=self.folder, **signalled)

    def version(self, artifact: str) -> Version:
        return open_version(self.folder / "data/k" / artifact)

    def copy(self, folder: Path, *artifacts: str) -> "Place":
        """Some of the artifacts in a folder of their own."""
        for artifact in artifacts:
            shutil.copytree(self.folder / "data/k" / artifact, folder / "data/k" / artifact)
        return Place(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """All stages, without an interrupt."""
    place = Place(tmp_path_factory.mktemp("whole"))
    assert forked(run_all, [STAGES], folder=place.folder)[0] == 0
    return place


def assert_same_bytes(found: Version, expected: Version) -> None:
    assert found.manifest["parts"] == expected.manifest["parts"], "sha256 of each part"
    assert found.manifest["files"] == expected.manifest["files"], "nothing else is left"


def test_sampling_goes_on_from_every_call_that_was_finished(whole: Place, tmp_path: Path) -> None:
    """Five calls of two prompts: Ctrl-C after one, SIGTERM after one more, a kill after two."""
    place = whole.copy(tmp_path, "prompts")
    code, err = place.perpo("sample", number=signal.SIGINT, calls=1)
    assert code == 130 and err.splitlines()[-1] == (
        "perpo: sample train interrupted; 2 of 10 prompts are kept, the same command goes on "
        "from there"
    )
    folder = next((tmp_path / "data/k/samples/train").glob("*/"))
    assert not list(folder.glob("*.parquet")), "no part is whole"
    code, err = place.perpo("sample", number=signal.SIGTERM, calls=1)
    assert code == 143 and "2 of 10 prompts are done already" in err
    assert "4 of 10 prompts are kept" in err.splitlines()[-1]
    notes = json.loads((folder / "notes.json").read_text())
    code, err = place.perpo("sample", number=signal.SIGKILL, calls=1, patience_s=0.0)
    assert code == -signal.SIGKILL
    (unfinished,) = folder.glob("unfinished-*")
    with unfinished.open("ab") as file:
        file.write(b'[{"prompt_id": "cut off')
    code, err = place.perpo("sample")
    assert code == 0 and "6 of 10 prompts are done already" in err
    assert_same_bytes(place.version("samples/train"), whole.version("samples/train"))
    assert place.version("samples/train").manifest["wall_s"] > notes["wall_s"] > 0


def test_an_evaluation_goes_on_with_the_same_batches(whole: Place, tmp_path: Path) -> None:
    place = whole.copy(tmp_path, "prompts")
    code, err = place.perpo("eval", number=signal.SIGINT, calls=2)
    assert code == 130 and "eval base@test interrupted; 4 of 5 prompts are kept" in err
    assert place.perpo("eval")[0] == 0
    for artifact in ("predictions/base@test", "metrics/base@test"):
        assert_same_bytes(place.version(artifact), whole.version(artifact))


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_keeps_what_several_processes_have_answered(
    whole: Place, tmp_path: Path
) -> None:
    """Every process of the group gets the signal; those that answer leave it to the command."""
    place = whole.copy(tmp_path, "prompts")
    two = ["sample", "--set", "sample.num_gpus=2"]
    code, err = place.perpo(*two, number=signal.SIGINT, calls=2, to_group=True)
    assert code == 130 and "Traceback" not in err, err
    kept = int(err.split("interrupted; ")[1].split(" of 10 prompts")[0])
    assert 4 <= kept < 10
    code, err = place.perpo("sample")
    assert code == 0 and f"{kept} of 10 prompts are done already" in err
    assert_same_bytes(place.version("samples/train"), whole.version("samples/train"))


def test_training_goes_on_from_the_lists_and_the_step_that_were_finished(
    whole: Place, tmp_path: Path
) -> None:
    """Ctrl-C after one call of the reference, then SIGTERM, then Ctrl-C in the second step."""
    place = whole.copy(tmp_path, "prompts", "samples", "scores", "preferences")
    lists = whole.version("preferences/train").manifest["rows"]
    steps = whole.version("adapter/perpo").manifest["rows"]
    calls = (lists + 1) // 2
    assert lists > 4 and steps > 2
    code, err = place.perpo("train", number=signal.SIGINT, calls=1)
    assert code == 130 and err.splitlines()[-1] == (
        f"perpo: reference train interrupted; the log-probabilities of 2 of {lists} lists are kept,"
        " the same command goes on from there"
    )
    code, err = place.perpo("train", number=signal.SIGTERM, calls=1)
    assert code == 143 and f"4 of {lists} lists are kept" in err.splitlines()[-1]
    code, err = place.perpo("train", number=signal.SIGINT, calls=calls - 2 + 1)
    assert code == 130 and err.splitlines()[-1] == (
        f"perpo: train perpo: interrupted after step 2 of {steps}, which is saved; the same "
        "command goes on from there"
    )
    assert_same_bytes(place.version("reference/train"), whole.version("reference/train"))
    assert place.perpo("train")[0] == 0
    found, expected = place.version("adapter/perpo"), whole.version("adapter/perpo")
    assert found.manifest["files"] == expected.manifest["files"], "the weights"
    tables = [pl.DataFrame(version.table()) for version in (found, expected)]
    left, right = (table.drop("tokens_per_s") for table in tables)
    assert left.equals(right)
