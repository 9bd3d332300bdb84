"""Names of configurations that ship, and what is installed how."""

from pathlib import Path

import pytest

from perpo_pipeline import advice, cli
from perpo_pipeline.config.file import load_config
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.shipped.files import CODE, CONFIGS, config_names, find_file
from perpo_pipeline.sweep.file import read_sweep

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_bare_name_is_a_file_that_ships_unless_such_a_file_is_here(folder: Path) -> None:
    assert config_names() == sorted(file.stem for file in (ROOT / "configs").glob("*.yaml"))
    assert find_file(Path("ci")) == CONFIGS / "ci.yaml"
    assert find_file(Path("sweeps/ci")) == CONFIGS / "sweeps" / "ci.yaml"
    for own in ("ci.yaml", "configs/ci.yaml", "nothing", "../ci", "/ci", "."):
        assert find_file(Path(own)) == Path(own)
    (folder / "ci").write_text("run: mine\n")
    assert find_file(Path("ci")) == Path("ci")


def test_a_run_and_a_sweep_that_ship_are_read_by_their_names() -> None:
    assert load_config(Path("ci")) == load_config(ROOT / "configs" / "ci.yaml")
    sweep = read_sweep(Path("sweeps/ci"))
    assert load_config(sweep.config).run == "ci"


def test_a_wrong_name_is_answered_with_the_names_that_ship() -> None:
    with pytest.raises(ConfigError, match="did you mean demo-ocr, which ships with perpo"):
        load_config(Path("demo-orc"))
    with pytest.raises(ConfigError, match="did you mean ci, which ships with perpo"):
        load_config(Path("configs/ci.yaml"))
    with pytest.raises(ConfigError, match="one that ships with perpo: ci, ci-ocr, demo, "):
        load_config(Path("zzz.yaml"))


def test_a_folder_is_no_run_and_not_taken_for_the_name_of_one_that_ships(folder: Path) -> None:
    (folder / "ci").mkdir()
    with pytest.raises(ConfigError, match=r"a folder, not a run's file(.|\n)*give a YAML file"):
        load_config(Path("ci"))
    (folder / "ci/perpo.yaml").write_text("run: ci\n")
    with pytest.raises(ConfigError, match=r"run the command in it, where it reads perpo\.yaml"):
        load_config(Path("ci"))


def test_a_command_says_which_file_a_name_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["status", "--config", "ci"])
    printed = capsys.readouterr()
    assert not ended.value.code and "run ci (data/ci)" in printed.out
    said = f"perpo: there is no file ci here, so it is the one of perpo: {CONFIGS / 'ci.yaml'}\n"
    assert printed.err.count(said) == 1
    assert "perpo prepare --config ci " in printed.out + " "


def test_extras_are_installed_from_the_project_or_into_what_a_wheel_installed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert advice.install("vllm") == "pip install -c constraints.txt -e '.[vllm]'"
    assert advice.install_package("wandb") == "pip install -c constraints.txt wandb"
    monkeypatch.setattr(advice, "_CODE", folder / "site-packages" / "perpo_pipeline")
    lock = folder / "site-packages/perpo_pipeline/shipped/constraints.txt"
    assert advice.install("vllm") == f"pip install -c {lock} 'perpo-pipeline[vllm]'"
    assert advice.install("") == f"pip install -c {lock} perpo-pipeline"
    assert (CODE / "shipped" / "constraints.txt").is_file()
