"""A whole sweep on fake stages: what is shared, chosen, resumed, and left alone."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sweep.fake_stages import SWEEP, fake_stages, write_files
from synthetic_run import prepare_synthetic, sample_synthetic

from perpo_pipeline import cli
from perpo_pipeline.config.file import load_config
from perpo_pipeline.errors import InputError
from perpo_pipeline.run import Console, Run
from perpo_pipeline.status.check import Check
from perpo_pipeline.store.artifacts import CURRENT, Version, open_version
from perpo_pipeline.store.garbage import find_unused
from perpo_pipeline.sweep import make_steps
from perpo_pipeline.sweep.run_sweep import open_sweeps, run_sweeps
from perpo_pipeline.sweep.table import sweep_table

Row = dict[str, Any]


@dataclass(frozen=True)
class Whole:
    """A finished sweep: its file, its artifact, and the steps that were made for it."""

    file: Path
    version: Version
    called: list[str]


def sweep(file: Path) -> Version:
    ((_, version),) = run_sweeps(open_sweeps([file]), Console(quiet=True))
    return version


def rows_of(version: Version) -> tuple[list[Row], list[Row]]:
    return version.table().to_pylist(), version.table("seed_differences").to_pylist()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    called: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_steps, "STAGES", fake_stages(called))
        file = write_files(tmp_path_factory.mktemp("whole"))
        yield Whole(file, sweep(file), [*called])


@pytest.fixture
def called(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The titles of the steps that are made during the test."""
    found: list[str] = []
    monkeypatch.setattr(make_steps, "STAGES", fake_stages(found))
    return found


def test_cells_share_what_their_settings_allow_and_the_best_setting_is_reported(
    whole: Whole,
) -> None:
    stages = [title.split()[0] for title in whole.called]
    # 3 settings of dpo and of perpo, 2 seeds each, and the base; of each method one on test.
    assert {stage: stages.count(stage) for stage in dict.fromkeys(stages)} == {
        "prepare": 3,
        "eval": 13 + 5,
        "sample": 1,
        "score": 1,
        "filter": 1,
        "train": 12,
    }
    rows, _ = rows_of(whole.version)
    on_test = [row for row in rows if row["split"] == "test"]
    assert all(row["is_selected"] for row in on_test)
    assert {(row["method"], row["setting"]) for row in on_test} == {
        ("base", "{}"),
        ("dpo", '{"train.beta": 0.5}'),  # it does not use gamma
        ("perpo", '{"train.beta": 0.5, "train.gamma": 1}'),
    }
    chosen = [row for row in on_test if row["method"] == "perpo"]
    assert [row["seed"] for row in chosen] == [0, 1, None]
    assert [row["num_seeds"] for row in chosen] == [1, 1, 2]
    assert chosen[2]["value"] == pytest.approx((chosen[0]["value"] + chosen[1]["value"]) / 2)
    assert chosen[0]["adapter"] and chosen[1]["adapter"] and chosen[2]["adapter"] is None
    on_validation = [row for row in rows if row["split"] == "validation" and row["num_seeds"] == 2]
    for method in ("dpo", "perpo"):
        own = [row for row in on_validation if row["method"] == method]
        assert [row["is_selected"] for row in own] == [False, True, False]
        assert max(own, key=lambda row: row["value"])["is_selected"]


def test_differences_count_prompts_and_seeds_and_are_adjusted_for_their_number(
    whole: Whole,
) -> None:
    _, found = rows_of(whole.version)
    assert [(row["better"], row["worse"]) for row in found] == [
        ("dpo", "base"),
        ("perpo", "base"),
        ("perpo", "dpo"),
    ]
    for row in found:
        assert row["is_claimed"] == (row["p_adjusted"] < 0.05)
        assert row["p_adjusted"] >= row["p_value"]
        assert (row["seeds_better"], row["n"], row["split"]) == (2, 40, "test")
    assert found[1]["seeds_worse"] == 0 and found[1]["is_claimed"]


def test_nothing_is_claimed_of_a_method_on_the_prompts_that_chose_its_setting(
    whole: Whole, called: list[str]
) -> None:
    file = whole.file.with_name("chosen.yaml")
    one = "  - {methods: [perpo], parameters: {train.beta: [0.5], train.gamma: [1]}}\n"
    text = SWEEP.replace("sweep: beta", "sweep: chosen").replace("[dpo, perpo]", "[dpo]")
    text = text.replace(", train.gamma: [1]", "")  # dpo does not use it
    file.write_text(text.replace("report_on: test\n", "").replace("seeds:", f"{one}seeds:"))
    version = sweep(file)
    rows, found = rows_of(version)
    assert called == [] and {row["split"] for row in rows} == {"validation"}
    pairs = {f"{row['better']} - {row['worse']}": row for row in found}
    # dpo has three settings; base and perpo have one each, and nothing chose it.
    assert {name: row["is_claimed"] for name, row in pairs.items()} == {
        "dpo - base": False,
        "perpo - base": True,
        "perpo - dpo": False,
    }
    assert pairs["perpo - dpo"]["p_adjusted"] < 0.05
    words = "chosen on these prompts: not claimed"
    table = sweep_table(rows, found)
    assert [words in line for line in table.splitlines() if "perpo - " in line] == [False, True]
    page = (version.path / "sweep.html").read_text()
    assert words in page and "The settings of dpo were chosen on these prompts, so their" in page
    assert version.manifest["stage_version"] == 2 and whole.version.manifest["stage_version"] == 1
    assert "are too good" not in (whole.version.path / "sweep.html").read_text()


def test_the_same_file_finds_everything_and_a_wider_grid_makes_only_what_is_new(
    whole: Whole, called: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(whole.file).path == whole.version.path
    assert called == []
    said = capsys.readouterr().err
    assert "at the edge" not in said and "num_processes" not in said
    wider = whole.file.with_name("wider.yaml")
    text = SWEEP.replace("[0.1, 0.5, 1]", "[0.5, 2]").replace("[0, 1]", "[0]")
    more = "sweep: wider\nset: {train.num_processes: 2}"  # changes no result
    wider.write_text(text.replace("sweep: beta", more))
    single = sweep(wider)
    # One seed claims nothing, and the smaller of two betas is at the edge.
    assert [title.partition(",")[0] for title in called] == [
        "train dpo",
        "eval dpo",
        "train perpo",
        "eval perpo",
    ]
    assert all("train.beta 2" in title for title in called)
    _, differences = rows_of(single)
    assert not any(row["is_claimed"] for row in differences)
    assert all(math.isnan(row["p_value"]) for row in differences)
    assert all(not math.isnan(row["difference"]) for row in differences)
    edge = "train.beta 0.5, chosen for dpo, is at the edge of what was tried (0.5, 2)"
    said = capsys.readouterr().err
    assert edge in said and "train.num_processes (2) has no effect here" in said


def test_a_sweep_that_is_killed_three_times_ends_with_the_same_rows(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    called: list[str] = []
    stops = [4, 11, 33]  # steps: before a training, within them, before the last evaluation

    def kill(title: str) -> None:
        if len(called) in stops:
            stops.remove(len(called))
            raise Killed

    file = write_files(tmp_path)
    monkeypatch.setattr(make_steps, "STAGES", fake_stages(called, kill))
    for _ in range(3):
        with pytest.raises(Killed):
            sweep(file)
    assert repr(rows_of(sweep(file))) == repr(rows_of(whole.version))
    assert sorted(called) == sorted(whole.called)  # nothing twice


def test_the_run_keeps_its_versions_in_use_and_finds_what_the_sweep_has_made(whole: Whole) -> None:
    config = load_config(whole.file.with_name("run.yaml"))
    in_use = {path.parent.name for path in config.run_dir.glob(f"*/*/{CURRENT}")}
    assert in_use <= {"beta", "wider", "chosen"}
    every = find_unused(config.run_dir, 7.0)
    measured = [
        whole.version.path / one["path"] for one in whole.version.manifest["inputs"].values()
    ]
    assert not {one.path for one in every} & {path.resolve() for path in measured}
    # Before its end a sweep has no artifact: what it has made is kept by its name.
    (config.run_dir / "sweep" / "beta" / CURRENT).rename(whole.file.with_name("kept"))
    loose = [one for one in find_unused(config.run_dir, 7.0) if one.path.parts[-3] == "adapter"]
    assert loose and {one.kept for one in loose} == {"the sweep beta asked for it"}
    whole.file.with_name("kept").rename(config.run_dir / "sweep" / "beta" / CURRENT)
    run = Run(config, quiet=True)
    for artifact in ("prompts", "samples"):
        place = config.run_dir / artifact / "train"
        before = {path.name for path in place.iterdir()}
        prepare_synthetic(run, "train") if artifact == "prompts" else sample_synthetic(run)
        assert {path.name for path in place.iterdir()} - before == {CURRENT}
    assert Check(config).find([("samples", "train")]).silent == {}


def test_the_command_prints_the_table_and_a_dry_run_counts_what_is_missing(
    whole: Whole, called: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def perpo(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(["sweep", *arguments])
        assert not ended.value.code
        return capsys.readouterr().out

    new = perpo(str(write_files(tmp_path)), "--dry-run")
    lines = {line.split()[0]: line.split() for line in new.splitlines()}
    assert lines["train"][1:6] == ["12", "0", "12", "96", "lists"]
    assert lines["sample"][1:6] == ["1", "0", "1", "48", "answers"]
    assert lines["eval"][1:6] == ["18", "0", "18", "590", "prompts"]  # 13 x 30 + 5 x 40
    assert lines["all"][-1] == "unknown" and not (tmp_path / "data").exists()
    done = perpo(str(whole.file), "--dry-run")
    lines = {line.split()[0]: line.split() for line in done.splitlines()}
    assert lines["train"][1:4] == ["12", "12", "0"]
    assert lines["all"][1:4] == ["36", "36", "0"]
    printed = perpo(str(whole.file), "--quiet").splitlines()
    (best,) = (line for line in printed if "beta 0.5, train.gamma 1" in line)
    assert best.startswith("perpo") and "chosen" in best and best.count("seeds") == 2
    page = Path(printed[-1])
    assert open_version(page.parent, "sweep").path == whole.version.path and page.is_file()
    rows = [json.loads(line) for line in perpo(str(whole.file), "--json", "--quiet").splitlines()]
    assert {row["metric"] for row in rows} == {"ap50"}
    assert called == []


def test_several_files_share_their_steps_and_one_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[str] = []

    def fail(title: str) -> None:
        if "train.beta 7" in title:
            raise InputError("this cell fails")

    monkeypatch.setattr(make_steps, "STAGES", fake_stages(called, fail))
    small = SWEEP.replace("[0, 1]", "[0]").replace("[dpo, perpo]", "[perpo]")
    texts = {
        "one": small.replace("[0.1, 0.5, 1]", "[0.1, 0.5]"),
        "bad": small.replace("[0.1, 0.5, 1]", "[7]"),
        "two": small.replace("[0.1, 0.5, 1]", "[0.5, 1]"),
    }
    write_files(tmp_path)
    files = []
    for name, text in texts.items():
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(text.replace("sweep: beta", f"sweep: {name}"))
    given = ["sweep", *map(str, files), "--figures", str(tmp_path / "figures")]

    def perpo(*options: str) -> int:
        with pytest.raises(SystemExit) as ended:
            cli.main([*given, *options])
        assert isinstance(ended.value.code, int)
        return ended.value.code

    assert perpo("--dry-run") == 0
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert lines["train"][1] == "4" and lines["prepare"][1] == "3" and "3" in lines
    assert perpo() == 2
    said = capsys.readouterr()
    assert "sweep bad failed: this cell fails" in said.err
    assert "1 of 3 sweeps failed: bad" in said.err
    # perpo with beta 0.1, 0.5 and 1, and the base: each once on validation, three on test.
    stages = [title.split()[0] for title in called]
    assert (stages.count("train"), stages.count("sample"), stages.count("prepare")) == (3, 1, 3)
    assert len(set(called)) == len(called)
    assert said.out.count("sweep.html") == 2 and said.out.endswith("README.md\n") is False
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert figures == {"README.md", "one.svg", "two.svg"}
    page = (tmp_path / "figures" / "README.md").read_text()
    assert page.index("## Sweep one") < page.index("## Sweep two")


def test_a_quick_version_in_a_run_of_its_own_says_what_it_is_and_warns_of_no_edge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[str] = []
    monkeypatch.setattr(make_steps, "STAGES", fake_stages(called))
    with pytest.raises(SystemExit) as ended:
        file = str(write_files(tmp_path))
        cli.main(["sweep", file, "--quick", "--set", "run=quick", "--max-hours", "8"])
    said = capsys.readouterr()
    assert "sweep beta: --max-hours 8 cannot be checked: the time of 8 of 13 calls is" in said.err
    assert not ended.value.code and "at the edge" not in said.err
    trained = [title for title in called if title.startswith("train")]
    assert [title.split(", seed")[0] for title in trained] == [
        "train perpo, train.beta 0.1, train.gamma 1",
        "train perpo, train.beta 1, train.gamma 1",
    ]
    page = Path(said.out.splitlines()[-1])
    assert (
        page.is_relative_to(tmp_path / "data" / "quick") and not (tmp_path / "data/small").exists()
    )
    text = page.read_text()
    assert "A quick version" in text and 'id="edges"' not in text


def test_few_seeds_choose_and_only_chosen_settings_are_trained_with_the_others(
    whole: Whole,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = SWEEP.replace("seeds: [0, 1]", "seeds: [0, 1, 2]\nselect_seeds: [0]")
    file, called = write_files(tmp_path, text), list[str]()
    monkeypatch.setattr(make_steps, "STAGES", fake_stages(called))
    with pytest.raises(SystemExit):
        cli.main(["sweep", str(file), "--dry-run"])
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    # Two methods: 3 settings with seed 0, then the chosen one with 2 seeds more.
    assert lines["train"][1] == "10" and lines["eval"][1:5] == ["14", "0", "14", "490"]
    made = sweep(file)
    said = capsys.readouterr().err
    assert "sweep beta: 11 cells, 30 calls of stages; 0 are finished, 10 trainings" in said
    assert "sweep beta: 30/30 eval perpo" in said
    trained = [title for title in called if title.startswith("train")]
    assert len(trained) == 10 and sum("seed 0" in title for title in trained) == 6
    assert all("train.beta 0.5" in title for title in trained if "seed 0" not in title)
    rows, differences = rows_of(made)
    on = {split: [row for row in rows if row["split"] == split] for split in ("validation", "test")}
    assert {row["seed"] for row in on["validation"]} == {None, 0}
    assert [row["seed"] for row in on["test"]] == [None, 0, 1, 2, None, 0, 1, 2, None]
    assert {(row["seeds_better"], row["n"]) for row in differences} == {(3, 40)}
    page = (made.path / "sweep.html").read_text()
    assert "Settings were chosen with seed 0, reported with seeds 0, 1, 2: seed 0 chose" in page
    assert sweep(file).path == made.path and len(called) == 30
    # Seeds that are reported may have chosen nothing; the trainings are there.
    file.write_text(text.replace("[0, 1, 2]", "[1, 2]"))
    other, rows = sweep(file), rows_of(sweep(file))[0]
    assert other.path != made.path and len(called) == 30
    assert {row["seed"] for row in rows if row["split"] == "test"} == {None, 1, 2}
    # All seeds choose: nothing of the settings that count has changed.
    assert "select_seeds" not in whole.version.manifest["settings"]


def test_a_cap_that_kept_every_list_is_no_edge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(make_steps, "STAGES", fake_stages([]))
    text = SWEEP.replace("train.beta: [0.1, 0.5, 1], train.gamma: [1]", "filter.max_lists: {caps}")
    text = text.replace("[dpo, perpo]", "[perpo]").replace("[0, 1]", "[0]")
    for caps, is_edge in (("[3, 2]", True), ("[800, 2]", False)):  # the first of equals is chosen
        sweep(write_files(tmp_path, text.replace("{caps}", caps)))
        assert ("at the edge" in capsys.readouterr().err) == is_edge


def test_two_sweeps_of_one_name_in_a_run_are_refused(
    whole: Whole, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["sweep", str(whole.file), str(whole.file)])
    assert ended.value.code == 2 and "is called 'beta', too" in capsys.readouterr().err
