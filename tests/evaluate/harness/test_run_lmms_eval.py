"""`perpo eval --harness lmms-eval`: what it runs, what it takes over, and what it refuses."""

import json
from pathlib import Path

import pytest
from fake_lmms_eval import install_fake_lmms_eval
from tiny_adapters import save_adapter_artifact
from tiny_families import save_tiny_family

from perpo_pipeline import cli
from perpo_pipeline.config.file import load_config
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.evaluate.harness.run_lmms_eval import _image_size
from perpo_pipeline.status.expected import differences
from perpo_pipeline.store.artifacts import open_version
from perpo_pipeline.testbed import shipped_model_dir
from perpo_pipeline.vlm.files import ResolvedModel
from perpo_pipeline.vlm.image_limits import ImageLimits

CONFIG = """
run: r
data_root: data
model: {id: testbed, dtype: float32, device: cpu}
prepare:
  train: {source: testbed, num_prompts: 4}
  test: {source: testbed, num_prompts: 4}
train: {methods: {perpo: {}}}
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder with a fake lmms-eval; the file of its calls."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(CONFIG)
    return install_fake_lmms_eval(tmp_path / "fake", monkeypatch)


def evaluate(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["eval", "--config", "r.yaml", "--quiet", "--harness", "lmms-eval", *arguments])
    return int(exit_.value.code or 0)


def words_of(calls: Path) -> list[list[str]]:
    return [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []


def after(name: str, words: list[str]) -> str:
    return words[words.index(name) + 1]


def test_base_and_trained_model_are_measured_and_finished_tasks_reused(
    calls: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_adapter_artifact(Path(shipped_model_dir()), Path("data/r/adapter/perpo"))
    assert evaluate("--tasks", "quiz,other") == 0
    first = words_of(calls)
    assert [after("--tasks", words) for words in first] == ["quiz", "quiz", "other", "other"]
    loaded = [after("--model_args", words).split(",") for words in first]
    base, merged = (part[0].partition("=")[2] for part in loaded[:2])
    assert base == str(shipped_model_dir())
    assert Path(merged).parent == Path("data/r/merged").resolve()
    assert loaded[0][1:] == ["device=cpu", "device_map=cpu", "dtype=float32"]
    assert all(after("--model", words) == "llava_hf" for words in first)
    assert all("--log_samples" in words for words in first)
    metrics = open_version(Path("data/r/metrics/perpo@lmms-eval-quiz")).table().to_pylist()
    assert [(row["name"], row["value"], row["n"]) for row in metrics] == [("quiz/acc", 1.0, 3)]
    made = open_version(Path("data/r/harness/perpo@lmms-eval-quiz"))
    assert made.manifest["inputs"]["adapter"]["variant"] == "perpo"
    assert made.manifest["notes"]["tasks"]["quiz"]["version"] == "1.0"
    capsys.readouterr()
    assert evaluate("--tasks", "quiz,other,third", "--evaluation", "base", "--json") == 0
    assert [after("--tasks", words) for words in words_of(calls)[4:]] == ["third"]
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["variant"] for row in rows] == [
        f"base@lmms-eval-{task}" for task in ("quiz", "other", "third")
    ]


def test_further_arguments_are_passed_on_and_count(calls: Path) -> None:
    one = ["--evaluation", "base", "--tasks", "quiz"]
    assert evaluate(*one) == 0
    assert evaluate(*one, "--harness-args", "--limit 3 --model_args max_frames_num=1") == 0
    first, second = words_of(calls)
    assert "--limit" not in first
    assert after("--limit", second) == "3"
    assert after("--model_args", second).endswith(",max_frames_num=1")
    assert second.count("--model_args") == 1


def test_changed_tasks_of_ones_own_are_run_again(calls: Path, tmp_path: Path) -> None:
    own = tmp_path / "tasks"
    own.mkdir()
    (own / "quiz.yaml").write_text("task: quiz")
    one = ["--evaluation", "base", "--tasks", "quiz", "--harness-args", f"--include_path {own}"]
    assert evaluate(*one) == evaluate(*one) == 0
    (own / "quiz.yaml").write_text("task: quiz  # version 2")
    assert evaluate(*one) == 0
    assert len(words_of(calls)) == 2


def test_finished_logs_of_a_killed_run_are_taken_over(calls: Path) -> None:
    """Killed after lmms-eval had written its results, before perpo had: nothing is run again."""
    one = ["--evaluation", "base", "--tasks", "quiz"]
    assert evaluate(*one) == 0
    place = Path("data/r/harness/base@lmms-eval-quiz")
    version = open_version(place)
    for file in (
        version.path / "manifest.json",
        *version.path.glob("*.parquet"),
        place / "current",
    ):
        file.unlink()
    assert evaluate(*one) == 0
    assert len(words_of(calls)) == 1
    assert open_version(place).table().num_rows == 3


@pytest.mark.parametrize(
    ("task", "message"),
    [("broken", "ValueError: Tasks not found: broken"), ("killed", "(exit code 9)")],
)
def test_a_run_without_results_is_one_error_with_its_output(
    calls: Path, capsys: pytest.CaptureFixture[str], task: str, message: str
) -> None:
    assert evaluate("--evaluation", "base", "--tasks", task) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "lmms-eval.log" in said
    assert not list(Path("data/r/harness").glob("*/*/logs"))
    assert not Path("data/r/metrics").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--harness needs --tasks"),
        (["--tasks", "mm*"], "'mm*' is not the name of a task"),
        (["--tasks", "a", "--evaluation", "perpo@test"], "it names a model of this run"),
        (["--tasks", "a", "--harness-args", "--output_path x"], "perpo gives --output_path itself"),
        (["--tasks", "a", "--image-conditioning"], "asks its own questions"),
        (["--tasks", "a", "--harness-python", "no/such/python"], "cannot be started"),
        (["--tasks", "a", "--harness", "vlmevalkit"], "perpo runs lmms-eval only"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    calls: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert evaluate(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not words_of(calls)


def test_a_missing_lmms_eval_names_how_to_install_it(
    calls: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", "")
    assert evaluate("--tasks", "quiz") == 2
    said = capsys.readouterr().err
    assert "lmms-eval is not installed" in said
    assert "pip install lmms-eval" in said


def test_a_path_that_lmms_eval_would_cut_at_its_marks_is_refused(
    calls: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("a,b", "a=b"):
        save_tiny_family("llava", tmp_path / name)
        given = ["--evaluation", "base", "--tasks", "quiz", "--model", str(tmp_path / name)]
        assert evaluate(*given) == 2
        said = capsys.readouterr().err
        assert "cannot load a model from a path with `,` or `=`" in said and name in said
    assert not words_of(calls)


def test_a_family_without_a_class_is_refused_by_name(
    calls: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    save_tiny_family("llava", tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"model_type": "newcomer"}))
    assert evaluate("--evaluation", "base", "--tasks", "quiz", "--model", str(tmp_path / "m")) == 2
    said = capsys.readouterr().err
    assert "no class that loads models of the family newcomer" in said
    assert "Qwen2.5-VL (qwen2_5_vl)" in said


def test_a_model_that_names_code_of_its_own_is_refused(
    calls: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """perpo loads it without its code; some classes of lmms-eval trust code without being told."""
    save_tiny_family("qwen3_vl", tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    named = {"auto_map": {"AutoConfig": "own.Config"}}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | named))
    assert evaluate("--evaluation", "base", "--tasks", "quiz", "--model", str(tmp_path / "m")) == 2
    assert "Python code (own.Config), and lmms-eval may run it" in capsys.readouterr().err
    assert not words_of(calls)


@pytest.mark.parametrize(
    ("model_class", "limits", "given"),
    [
        ("qwen2_5_vl", ImageLimits(max_pixels=9), ["max_pixels=9"]),
        ("qwen3_vl", ImageLimits(4, 9), ["min_pixels=4", "max_pixels=9"]),
        ("internvl_hf", ImageLimits(max_tiles=3), ["max_patches=3"]),
        ("llava_hf", ImageLimits(), []),
    ],
)
def test_limits_on_the_image_size_are_given_where_the_class_takes_them(
    model_class: str, limits: ImageLimits, given: list[str]
) -> None:
    assert _image_size(model_class, ResolvedModel(Path(), "m", limits=limits)) == given


def test_a_class_that_takes_no_limit_is_refused() -> None:
    resolved = ResolvedModel(Path(), "m", limits=ImageLimits(max_tiles=3))
    with pytest.raises(ConfigError, match=r"llava_hf cannot limit .* model.max_tiles"):
        _image_size("llava_hf", resolved)


def test_another_limit_on_the_image_size_is_another_measurement(
    calls: Path, tmp_path: Path
) -> None:
    """Nothing that was measured at one size stands for another, and status agrees."""
    model = save_tiny_family("qwen3_vl", tmp_path / "model")
    file = Path("r.yaml")
    file.write_text(CONFIG.replace("id: testbed", f"id: {model}, max_pixels: 16384"))
    one = ["--evaluation", "base", "--tasks", "quiz"]
    assert evaluate(*one) == evaluate(*one) == 0
    made = open_version(Path("data/r/harness/base@lmms-eval-quiz"))
    assert made.manifest["settings"]["max_pixels"] == 16384
    assert not differences(("harness", made.variant), made.manifest, load_config(file))
    assert evaluate(*one, "--set", "model.max_pixels=8192") == 0
    arguments = [after("--model_args", words).rpartition(",")[2] for words in words_of(calls)]
    assert arguments == ["max_pixels=16384", "max_pixels=8192"]
