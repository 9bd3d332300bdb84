"""Whole chains of rounds on fake stages: where they end, what is compared and what is kept."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rounds.fake_rounds import FILE, RIGHT, use_fakes, write_rounds

from perpo_pipeline import cli
from perpo_pipeline.config.file import load_config
from perpo_pipeline.merge.folder import RECORD, WEIGHTS
from perpo_pipeline.rounds.iterate import lists_in_all
from perpo_pipeline.store.artifacts import Version, input_of, open_version
from perpo_pipeline.store.garbage import find_unused
from perpo_pipeline.store.writing import Writer
from perpo_pipeline.vlm.files import compute_identity, resolve_model

Row = dict[str, Any]


@dataclass(frozen=True)
class Whole:
    """A finished chain: its file, its artifact, and what was made for it."""

    file: Path
    version: Version
    called: list[str]

    def rows(self, split: str) -> list[Row]:
        return [row for row in self.version.table().to_pylist() if row["split"] == split]

    def round(self, name: str) -> Path:
        return self.file.parent / "data" / "small" / name


def iterate(file: Path, *arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["iterate", "--config", str(file), "--quiet", *arguments])
    assert not ended.value.code


def fails(file: Path, *arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["iterate", "--config", str(file), "--quiet", *arguments])
    assert ended.value.code == 2


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """The bytes and the time of every file."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def artifact(file: Path) -> Version:
    return open_version(file.parent / "data" / "small" / "rounds" / "default", "rounds")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    called: list[str] = []
    file = write_rounds(tmp_path_factory.mktemp("whole"))
    with pytest.MonkeyPatch.context() as patch:
        use_fakes(patch, called)
        iterate(file)
    yield Whole(file, artifact(file), called)


def test_the_rounds_end_where_one_no_longer_gains_and_the_test_split_chooses_nothing(
    whole: Whole,
) -> None:
    on_validation = whole.rows("validation")
    assert [row["name"] for row in on_validation] == [
        "base",
        "round 1",
        "round 2",
        "round 3",
        "one round",
    ]
    assert [row["round"] for row in on_validation] == [0, 1, 2, 3, None]
    assert [row["against"] for row in on_validation] == [
        None,
        "base",
        "round 1",
        "round 2",
        "round 3",
    ]
    assert [row["gains"] for row in on_validation] == [None, True, True, False, False]
    assert [row["is_chosen"] for row in on_validation] == [False, False, True, False, False]
    assert on_validation[3]["difference"] == 0.0 and on_validation[3]["p_value"] == 1.0
    assert all(row["p_value"] < 0.05 for row in on_validation[1:3])
    on_test = whole.rows("test")
    assert [row["name"] for row in on_test] == [row["name"] for row in on_validation]
    assert [row["is_chosen"] for row in on_test] == [row["is_chosen"] for row in on_validation]
    assert {row["n"] for row in on_test} == {90}
    evaluations = [title for title in whole.called if "@test" in title]
    first = whole.called.index(evaluations[0])
    assert not [title for title in whole.called[first:] if " train" in title]


def test_each_round_has_prompts_of_its_own_and_the_one_beside_them_has_all(whole: Whole) -> None:
    def prompts(name: str) -> list[str]:
        version = open_version(whole.round(name) / "prompts" / "train")
        return list(version.table(columns=["prompt_id"])["prompt_id"].to_pylist())

    parts = [prompts(f"round-{number}") for number in (1, 2, 3)]
    assert [len(part) for part in parts] == [9, 9, 9]
    assert len({one for part in parts for one in part}) == 27
    assert sorted(prompts("one-round")) == sorted(one for part in parts for one in part)
    rounds, beside = whole.rows("test")[1:4], whole.rows("test")[4]
    assert beside["num_prompts"] == 27 and beside["num_samples"] == 27 * 6
    assert all(row["num_samples"] == 9 * 6 and 0 < row["num_lists"] <= 8 for row in rounds)
    cap = load_config(whole.round("one-round.yaml")).filter.max_lists
    assert cap == sum(row["num_lists"] for row in rounds) and 0 < beside["num_lists"] <= cap
    assert not whole.round("round-4").exists()  # nor its file
    assert not whole.round("round-4.yaml").exists()


def test_every_round_names_what_it_began_with_and_what_came_of_it(whole: Whole) -> None:
    _, first, second, third, beside = whole.rows("test")
    merged = [row["merged"] for row in (first, second)]
    assert third["merged"] is None and beside["merged"] is None and None not in merged
    for number, row in ((1, first), (2, second)):
        folder = whole.round(f"round-{number}") / "model" / row["adapter"]
        assert compute_identity(resolve_model(str(folder))) == row["merged"]
        config = load_config(whole.round(f"round-{number + 1}.yaml"))
        assert config.model.id == str(folder)
    assert load_config(whole.round("one-round.yaml")).model.id == "testbed"
    inputs = {record["artifact"] for record in whole.version.manifest["inputs"].values()}
    assert inputs == {"metrics", "adapter"}
    assert len(whole.version.manifest["inputs"]) == 2 * 5 + 4
    notes = whole.version.manifest["notes"]
    assert notes["chosen"] == "round 2"
    assert notes["model"] == str(whole.round("round-2") / "model" / second["adapter"])
    page = (whole.version.path / "rounds.html").read_text()
    assert page.count("<svg") == 2 and "The rounds ended with round 3" in page
    assert "@@" not in page and first["adapter"] in page


def test_the_same_command_finds_everything_and_prints_the_table(
    whole: Whole, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[str] = []
    use_fakes(monkeypatch, called)
    iterate(whole.file)
    said = capsys.readouterr()
    assert called == [] and "everything is up to date, nothing was run" in said.err
    assert "this is no gain at alpha 0.05, so the rounds end and round 2 is chosen" in said.err
    lines = said.out.splitlines()
    assert lines[-1] == str(whole.version.path / "rounds.html")
    (chosen,) = (line for line in lines[:6] if line.endswith("chosen"))
    assert chosen.startswith("round 2") and "to round 1" in chosen
    iterate(whole.file, "--json")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows == whole.version.table().to_pylist()
    iterate(whole.file, "--dry-run")
    assert capsys.readouterr().out == "rounds of small: everything is finished\n"


def test_a_chain_that_was_moved_goes_on_at_its_new_place(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_rounds(tmp_path)
    shutil.copytree(whole.file.parent / "data", tmp_path / "data")
    (merged,) = (tmp_path / "data" / "small" / "round-2" / "model").iterdir()
    shutil.rmtree(merged)
    called: list[str] = []
    use_fakes(monkeypatch, called)
    iterate(file)
    assert called == ["merge round-2"]  # into the merged model that is here
    assert artifact(file).path.name == whole.version.path.name


def test_a_merged_model_of_other_weights_of_the_adapter_is_not_taken(
    whole: Whole,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As after `rm -r round-1/adapter` and a training with another number of processes."""
    file, data = write_rounds(tmp_path), tmp_path / "data" / "small"
    shutil.copytree(whole.file.parent / "data", tmp_path / "data")
    use_fakes(monkeypatch, [])
    trained = open_version(data / "round-1" / "adapter" / "perpo").path / "manifest.json"
    merged = data / "round-1" / "model" / trained.parent.name
    manifest, record = json.loads(trained.read_text()), json.loads((merged / RECORD).read_text())

    def state(sha256: str, created_at: str, recorded: dict[str, Any]) -> None:
        files = [{"file": "adapter_model.safetensors", "sha256": sha256}]
        trained.write_text(json.dumps({**manifest, "files": files, "created_at": created_at}))
        (merged / RECORD).write_text(json.dumps(recorded))

    state("b" * 64, "2026-01-02T00:00:00Z", {**record, WEIGHTS: "a" * 64})
    before = contents(merged)
    for arguments in ([], ["--dry-run"]):
        fails(file, *arguments)
        said = capsys.readouterr().err
        assert "merged from other weights of the adapter: adapter_sha256 " + "a" * 64 in said
        assert str(merged) in said and "move this folder away, or remove it, then run" in said
    assert contents(merged) == before
    # An earlier version recorded no sha256: its merge counts unless the adapter is newer.
    old = {"made_at": "2026-01-02T00:00:00Z", "files": {}}
    state("b" * 64, "2026-01-02T00:00:01Z", old)
    fails(file)
    said = capsys.readouterr().err
    assert "2026-01-02T00:00:00Z, before this adapter was trained at 2026-01-02T00:00:01Z" in said
    state("b" * 64, "2026-01-02T00:00:00Z", old)
    iterate(file)
    said = capsys.readouterr().err
    assert f"merge perpo: taken ({merged}); an earlier version wrote its record" in said
    assert json.loads((merged / RECORD).read_text()) == old  # nothing is filled in by a guess


def test_a_chain_that_is_killed_at_three_random_moments_ends_with_the_same_rows(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    written: list[str] = []
    write = Writer.write_part
    seed = random.randrange(10**6)
    stops = sorted(random.Random(seed).sample(range(2, 50), 3))

    def write_part(self: Writer, index: int, rows: Any, table: str | None = None) -> None:
        if len(written) in stops:
            stops.remove(len(written))
            raise Killed
        write(self, index, rows, table)
        written.append(str(self.path))

    file, called = write_rounds(tmp_path), list[str]()
    use_fakes(monkeypatch, called)
    monkeypatch.setattr(Writer, "write_part", write_part)
    for _ in range(3):
        with pytest.raises(Killed):
            cli.main(["iterate", "--config", str(file), "--quiet"])
    iterate(file)
    again = Whole(file, artifact(file), called)
    for split in ("validation", "test"):
        for row, before in zip(again.rows(split), whole.rows(split), strict=True):
            names = [Path(one.pop("model")).name for one in (row, before)]  # under another folder
            assert names[0] == names[1] and row == before, f"seed {seed}"
    assert sorted(set(called)) == sorted(set(whole.called))
    assert len(called) <= len(whole.called) + 3  # what was under way at each kill, again


def test_without_alpha_all_rounds_are_made_and_the_best_one_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = {**RIGHT, "round-2": 0.4, "round-3": 0.5}
    text = FILE.replace("num: 4, num_prompts: 9, beside: one-round", "num: 3, alpha: null")
    text = text.replace("num: 3", "report_on: null, prompts: same, num: 3")
    called: list[str] = []
    use_fakes(monkeypatch, called, right=right)
    file = write_rounds(tmp_path, text)
    iterate(file)
    rows = artifact(file).table().to_pylist()
    assert [row["name"] for row in rows] == ["base", "round 1", "round 2", "round 3"]
    assert [row["is_chosen"] for row in rows] == [False, True, False, False]
    assert [row["num_prompts"] for row in rows] == [0, 36, 36, 36]
    assert {row["split"] for row in rows} == {"validation"}
    assert not [title for title in called if "test" in title]
    own = Whole(file, artifact(file), called)
    assert all(own.rows("validation")[n]["merged"] for n in (1, 2, 3))


def test_a_share_of_the_last_rounds_lists_is_kept(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    use_fakes(monkeypatch, called)
    file = write_rounds(tmp_path, FILE.replace("num: 4", "num: 3, keep_lists: 0.5"))
    iterate(file)
    own = Whole(file, artifact(file), called)
    lists = [open_version(own.round(f"round-{n}") / "preferences" / "train") for n in (1, 2, 3)]
    new = [row["num_lists"] for row in whole.rows("test")[1:4]]  # the same prompts and samples
    assert [row["num_lists"] for row in own.rows("test")[1:4]] == [
        new[0],
        second := new[1] + round(new[0] / 2),
        new[2] + round(second / 2),
    ]
    assert lists[0].manifest["rows"] == new[0] and "earlier" not in lists[0].manifest["inputs"]
    for number, (before, after) in enumerate(pairwise(lists), start=2):
        earlier = input_of(after, "preferences").path.resolve()
        assert earlier == before.path.resolve()
        rows, old = after.table().to_pylist(), before.table().to_pylist()
        assert all(row in old for row in rows[new[number - 1] :])
        config = load_config(own.round(f"round-{number}.yaml"))
        assert Path(str(config.filter.earlier)).resolve() == earlier
        assert config.filter.keep_earlier == 0.5
        adapter = open_version(own.round(f"round-{number}") / "adapter" / "perpo")
        assert input_of(adapter, "preferences").path.resolve() == after.path.resolve()
    # Beside them: as many lists as were sampled, none twice.
    assert load_config(own.round("one-round.yaml")).filter.max_lists == sum(new)
    assert "keeps <b>0.5</b> of the lists" in (own.version.path / "rounds.html").read_text()
    assert "keep_lists" not in whole.version.manifest["settings"]
    called.clear()
    iterate(file)
    assert called == [] and artifact(file).path == own.version.path
    # Other lists in the first round: the second round notices what it was made from.
    iterate(file, "--set", "filter.seed=3", "--set", "filter.max_lists=5")
    changed = open_version(own.round("round-2") / "preferences" / "train")
    assert changed.path != lists[1].path
    unused = {one.path for one in find_unused(file.parent / "data" / "small", 0.0)}
    assert lists[0].path.resolve() in unused
    assert input_of(changed, "preferences").path.resolve() not in unused


def test_a_changed_setting_makes_new_rounds_and_keeps_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    use_fakes(monkeypatch, called)
    alone = FILE.replace(", beside: one-round", "")
    file = write_rounds(tmp_path, alone.replace("num: 4", "num: 1"))
    iterate(file)
    first = artifact(file)
    called.clear()
    iterate(file, "--set", "rounds.num=2")  # with num_prompts the first round stays as it is
    assert not [title for title in called if title.startswith("round-1 train")]
    assert [title for title in called if title.startswith("round-2 train")]
    called.clear()
    iterate(file, "--set", "train.methods.perpo.beta=0.4")
    assert [title for title in called if title.startswith("round-1 train")]
    assert not [title for title in called if "sample" in title]
    called.clear()
    iterate(file)
    assert artifact(file).path == first.path
    folder = file.parent / "data" / "small" / "round-1"
    adapters = [*(folder / "adapter" / "perpo").glob("*/manifest.json")]
    assert len(adapters) == 2  # nothing was trained again
    # Of the other setting nothing is in use, nor of the second round; the first is left whole.
    unused = {one.path for one in find_unused(folder.parent, 0.0)}
    (used,) = (file.parent for file in adapters if file.parent not in unused)
    assert used.name == artifact(file).table()["adapter"].to_pylist()[1]
    models = sorted((folder / "model").iterdir())
    assert [one.name for one in models if one not in unused] == [used.name] and len(models) == 2
    # Made of inputs that were made again, an adapter lies beside; the model has its fingerprint.
    beside = used.rename(f"{used}-12345678")
    (used.parent / "current").write_text(beside.name)
    assert folder / "model" / used.name not in {one.path for one in find_unused(folder.parent, 0)}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("rounds: {{", "rounds: {{method: prepo, "), "no training 'prepo'; did you mean 'perpo'?"),
        (("beta: 0.3}}", "beta: 0.3}}, dpo: {{}}"), "rounds.method: name one of the trainings"),
        (
            ("rounds: {{", "rounds: {{select_on: train, "),
            "select_on: the rounds are trained",
        ),
        (("rounds: {{", "rounds: {{report_on: tset, "), "rounds.report_on: 'tset' is not a split"),
        (("rounds: {{", "rounds: {{report_on: validation, "), "'validation' is select_on, too"),
        (("rounds: {{", "rounds: {{metric: ap5, "), "rounds.metric: there is no metric 'ap5'"),
        (("rounds: {{", "rounds: {{metric: parse_rate, "), "parse_rate is not compared prompt by"),
        (("num_samples: 6", "num_samples: 6, backend: openai"), "a server answers with its own"),
        (
            ("run: small", "run: small\nmodel: {{quantization: nf4}}"),
            "model.quantization: nf4 would quantise each merged model anew",
        ),
        (("num_prompts: 9", "num_prompts: 10"), "need 40, and 'train' has 36"),
        (("num: 4, num_prompts: 9", "num: 40"), "40 rounds with at least one prompt each need 40"),
        (("num: 4", "num: 4, prompts: same"), "num_prompts has no use with prompts same"),
        (("num: 4", "num: 0"), "rounds.num"),
        (("num: 4", "num: 4, keep_lists: 1.5"), "rounds.keep_lists: Input should be less than or"),
        (("num: 4", "nun: 4"), "rounds.nun: no such setting"),
        (
            (
                "{{beta: 0.3}}}}}}\nrounds: {{",
                "{{beta: 0.3, reference_model: a}}}}}}\nrounds: {{reference: base, ",
            ),
            "rounds.reference: the training 'perpo' has a reference model of its own",
        ),
    ],
)
def test_settings_that_do_not_fit_are_one_error_before_anything_is_sampled(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: tuple[str, str],
    expected: str,
) -> None:
    called: list[str] = []
    use_fakes(monkeypatch, called)
    file = write_rounds(tmp_path, FILE.replace(*change))
    with pytest.raises(SystemExit) as ended:
        cli.main(["iterate", "--config", str(file), "--quiet"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and expected in said and said.count("perpo: error") == 1
    assert not [title for title in called if "prepare" not in title]


def test_rounds_that_meet_the_test_split_are_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[str] = []
    use_fakes(monkeypatch, called)
    file = write_rounds(tmp_path)
    iterate(file, "--set", "rounds.num=1")
    prompts = file.parent / "data" / "small" / "prompts" / "train"
    shared = f"prepare.test={{source: prompts, path: {prompts}, num_prompts: 5}}"
    called.clear()
    with pytest.raises(SystemExit) as ended:
        cli.main(["iterate", "--config", str(file), "--quiet", "--set", shared])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and called == ["small prepare test"]
    assert "5 prompts of 'test' have the image of a prompt that the rounds are trained on" in said
    assert "drawn, box" in said


def test_a_dry_run_counts_every_round_and_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("perpo_pipeline.planning.plan.is_small", lambda model: False)  # no trial
    file = write_rounds(tmp_path)
    iterate(file, "--dry-run")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("rounds of small, training perpo (fewer where a round no longer")
    rounds = {" ".join(line.split()[:2]): line.split()[2:6] for line in lines[2:]}
    assert rounds["round 1"] == ["9", "54", "8", "340"]  # and the base
    assert rounds["round 4"] == ["9", "54", "8", "170"]
    assert rounds["one round"] == ["36", "216", "32", "170"]
    assert not (tmp_path / "data").exists()
    iterate(file, "--dry-run", "--set", "rounds.keep_lists=0.5")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[4] for line in lines[2:7]] == ["8", "12", "14", "15", "32"]
    for more, what in (
        (("rounds.num=50", "rounds.num_prompts=null"), "50 rounds with at least one prompt each"),
        (("rounds.metric=edit_distance",), "edit_distance is not compared prompt by prompt on gro"),
    ):
        with pytest.raises(SystemExit) as ended:
            sets = [word for one in more for word in ("--set", one)]
            cli.main(["iterate", "--config", str(file), "--dry-run", *sets])
        said = capsys.readouterr()
        assert ended.value.code == 2 and what in said.err and not said.out


def test_a_dry_run_writes_no_file_of_a_chain(
    whole: Whole,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Neither a round's file nor a comparison, the artifact, `current` or a model's digests."""
    monkeypatch.setattr("perpo_pipeline.planning.plan.is_small", lambda model: False)  # no trial
    use_fakes(monkeypatch, [])
    file, data = write_rounds(tmp_path), tmp_path / "data" / "small"
    shutil.copytree(whole.file.parent / "data", tmp_path / "data")
    for digests in data.rglob(".model-identity.json"):
        digests.unlink()

    def dry_run(*arguments: str) -> list[str]:
        before = contents(tmp_path)
        iterate(file, "--dry-run", *arguments)
        assert contents(tmp_path) == before
        return capsys.readouterr().out.splitlines()

    for folder in (data / "rounds", *list(data.rglob("comparison"))):
        shutil.rmtree(folder)
    (said,) = dry_run()
    assert said.endswith("all is finished but the table and the page of all rounds")
    shutil.rmtree(data / "one-round" / "adapter")
    ends = [line.split()[-1] for line in dry_run()[2:7]]
    assert ends[:3] == ["finished"] * 3 and "finished" not in ends[3:]
    assert "finished" not in " ".join(dry_run("--set", "train.methods.perpo.beta=2.5"))
    shutil.rmtree(data / "round-2" / "metrics" / "perpo@test")
    said = dry_run()[2:7]
    assert said[0].endswith("finished") and said[2].endswith("finished")
    assert "finished, to be evaluated on test, " in said[1]
    shutil.rmtree(data / "round-2" / "model")
    assert "finished, to be merged and evaluated on test, " in dry_run()[3]


def test_one_round_beside_has_as_many_lists_of_each_task_as_the_rounds_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fakes(monkeypatch, [])
    pages = "{{source: testbed, num_prompts: 18, task: ocr}}"
    text = FILE.replace(
        "train: {{source: testbed, num_prompts: 36}}",
        f"train: [{{{{source: testbed, num_prompts: 18}}}}, {pages}]",
    )
    text = text.replace("min_margin: 0.6", "min_margin: {{grounding: 0.6, ocr: 0.2}}")
    text = text.replace("max_lists: 8", "max_lists: {{grounding: 6, ocr: null}}")
    file = write_rounds(tmp_path, text.replace("num: 4", "num: 2, alpha: null, report_on: null"))
    iterate(file)
    data = tmp_path / "data" / "small"
    lists = [open_version(data / f"round-{n}" / "preferences" / "train") for n in (1, 2)]
    made = Counter(task for one in lists for task in one.table()["task"].to_pylist())
    assert made["grounding"] < 12 and made["ocr"]  # not all that the caps allow
    assert load_config(data / "one-round.yaml").filter.max_lists == made
    # 1 is the smallest cap, and no cap would be all lists.
    none = Counter({"grounding": 3})
    assert lists_in_all({"grounding": 4, "ocr": None}, none) == {"grounding": 3, "ocr": 1}
    assert (lists_in_all(None, none), lists_in_all(4, Counter())) == (3, None)
