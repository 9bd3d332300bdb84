"""`perpo path`: the folder of the version in use, by the artifact's name."""

from pathlib import Path

import pytest

from perpo_pipeline import cli
from perpo_pipeline.store.writing import Recipe, open_writer

CONFIG = """
run: r
model: {id: testbed, dtype: float32, device: cpu}
prepare: {train: {source: testbed, num_prompts: 4}, test: {source: testbed, num_prompts: 4}}
train: {methods: {sft: , dpo: , perpo: }}
"""


def path(capsys: pytest.CaptureFixture[str], asked: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(["path", asked, "--config", "r.yaml"])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(CONFIG)
    return tmp_path


def test_the_version_in_use_is_found_by_name(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for margin in (0.8, 0.4):
        recipe = Recipe("preferences", "train", "filter", 1, {"min_margin": margin})
        with open_writer(Path("data/r/preferences/train"), recipe) as writer:
            version = writer.finish()
    for asked in ("preferences", "preferences/train"):
        code, out, err = path(capsys, asked)
        assert (code, out) == (0, f"{version.path}\n")
        setting = "made with filter.min_margin 0.4, the configuration says 0.8"
        assert f"path: not as the configuration says: preferences/train: {setting}\n" in err
    with open_writer(Path("data/r/reference/0f"), Recipe("reference", "0f", "train", 1, {})) as w:
        reference = w.finish()  # no node of the graph, but in the run's folder
    assert path(capsys, "reference")[:2] == (0, f"{reference.path}\n")


@pytest.mark.parametrize(
    ("asked", "messages"),
    [
        ("prefrences", ["no artifact 'prefrences'; did you mean 'preferences'?"]),
        (
            "adapter",
            ["has 'adapter' of 3 variants", "choose one: adapter/sft, adapter/dpo, adapter/perpo"],
        ),
        ("adapter/pepro", ["no adapter/pepro; did you mean 'perpo'?"]),
        (
            "metrics/base@test",
            [
                "no finished metrics 'base@test' yet",
                "run: perpo eval --config r.yaml --evaluation base@test",
            ],
        ),
        ("samples", ["no finished samples 'train' yet", "run: perpo sample --config r.yaml"]),
    ],
)
def test_what_is_not_there_is_one_error(
    workdir: Path, capsys: pytest.CaptureFixture[str], asked: str, messages: list[str]
) -> None:
    code, out, err = path(capsys, asked)
    assert code == 2 and not out
    assert not [message for message in messages if message not in err]
