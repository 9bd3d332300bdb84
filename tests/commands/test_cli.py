"""The command line: answers at once, one clear message and exit code 2 for a user's error."""

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

from perpo_pipeline import cli
from perpo_pipeline.commands.removed import REMOVED
from perpo_pipeline.config.file import load_config
from perpo_pipeline.config.overrides import parse_set
from perpo_pipeline.rewards.builtin import AUTO, REWARDS

ROOT = Path(__file__).resolve().parents[2]

COMMANDS = [
    "init",
    "prepare",
    "sample",
    "score",
    "filter",
    "train",
    "eval",
    "browse",
    "ask",
    "measure",
    "compare",
    "judge",
    "merge",
    "export",
    "report",
    "run",
    "sweep",
    "iterate",
    "status",
    "settings",
    "path",
    "inspect",
    "make-rules",
    "plan",
    "doctor",
    "gc",
]
CONFIG = """
run: r
model: {id: testbed, dtype: float32, device: cpu}
prepare:
  train: {source: testbed, num_prompts: 4}
  test: {source: testbed, num_prompts: 4}
sample: {num_samples: 4, max_new_tokens: 24}
"""


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(CONFIG)
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main([*arguments])
    return int(exit_.value.code or 0)


HEAVY = [
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "deepspeed",
    "vllm",
    "ray",
    "openai",
    "numpy",
    "polars",
    "pyarrow",
    "PIL",
    "matplotlib",
    "jinja2",
    "requests",
    "huggingface_hub",
]
SETTINGS_READERS = ["pydantic", "yaml"]


@pytest.mark.parametrize(
    ("arguments", "not_imported"),
    [
        (["--help"], [*HEAVY, *SETTINGS_READERS]),
        (["train", "--help"], HEAVY),
        (["eval", "--help"], HEAVY),
        (["settings", "filter"], HEAVY),
        (["make-rules", "--config", "r.yaml"], HEAVY),
        (["status", "--config", "r.yaml"], ["torch", "transformers", "huggingface_hub"]),
    ],
    ids=" ".join,
)
def test_what_must_answer_at_once_imports_no_heavy_package(
    workdir: Path, arguments: list[str], not_imported: list[str]
) -> None:
    code = (
        "import sys\nfrom perpo_pipeline import cli\ntry:\n    cli.main(sys.argv[1:])\n"
        "except SystemExit as ended:\n    assert not ended.code\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True
    )
    imported = done.stderr.split()
    assert done.stdout and "perpo_pipeline.cli" in imported
    assert not set(imported) & set(not_imported)


def every_command(command: Any, path: tuple[str, ...] = ()) -> dict[str, Any]:
    """All commands by their words, those of groups too."""
    if not hasattr(command, "commands"):
        return {" ".join(path): command}
    found: dict[str, Any] = {}
    for name, inner in command.commands.items():
        found |= every_command(inner, (*path, name))
    return found


COMMAND: Any = typer.main.get_command(cli.app)
ALL_COMMANDS = every_command(COMMAND)


def examples_of(text: str) -> list[list[str]]:
    """The commands after `Example:`, in words."""
    paragraphs = (" ".join(block.split()) for block in text.split("\n\n"))
    return [shlex.split(p.removeprefix("Example:")) for p in paragraphs if p.startswith("Example:")]


def test_the_first_sentence_of_every_command_fits_its_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for group, title in (([], "Stages, in"), (["measure"], "Commands:"), (["judge"], "Commands:")):
        assert run(*group, "--help") == 0
        summaries = capsys.readouterr().out.split(title)[1].splitlines()
        assert len(summaries) > 3 and not [line for line in summaries if line.endswith("...")]


def test_the_help_has_the_stages_first_and_every_command_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("--help") == 0
    _, _, listed = capsys.readouterr().out.partition("Stages, in their order:")
    names = [line.split()[0] for line in listed.splitlines() if line.startswith("  ")]
    assert names[:7] == ["prepare", "sample", "score", "filter", "train", "eval", "report"]
    shown = {name for name, command in COMMAND.commands.items() if not command.hidden}
    assert sorted(names) == sorted(shown)
    assert "\nCommands:" not in listed  # every command has its place in GROUPS


def test_an_example_of_the_help_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("judge", "win-rate", "--help") == 0
    shown = capsys.readouterr().out.partition("Example: ")[2].partition("\n\n")[0]
    assert shown.count("\\\n") >= 1 and max(map(len, shown.splitlines())) <= 80
    assert [shlex.split(shown.replace("\\\n", ""))] == examples_of(
        ALL_COMMANDS["judge win-rate"].help
    )


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert re.fullmatch(r"perpo \d+\.\d+.*\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("typed", "use"),
    [
        ("eval --split val", "use --set eval.splits=[val], or --evaluation base@val"),
        ("eval --method perpo", "use --evaluation perpo"),
        ("sample --split val", "use --set sample.split=val"),
    ],
)
def test_an_option_of_another_command_is_answered_with_what_means_it_here(
    typed: str, use: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*typed.split()) == 2
    said = capsys.readouterr().err
    assert f"perpo {typed.split()[0]} has no {typed.split()[1]}" in said and use in said


def test_every_command_is_listed() -> None:
    groups = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    assert set(groups) == set(COMMANDS)
    assert {"measure boxes", "measure best-of-n", "judge win-rate", "filter"} <= set(ALL_COMMANDS)


@pytest.mark.parametrize("name", ALL_COMMANDS)
def test_the_examples_of_every_command_are_accepted_by_its_parser(name: str) -> None:
    command = ALL_COMMANDS[name]
    examples = examples_of(command.help)
    assert examples
    for perpo, *words in examples:
        own = len(name.split())
        assert [perpo, *words[:own]] == ["perpo", *name.split()]
        context = command.make_context(name, words[own:])  # raises for an unknown option
        sets = list(context.params.get("sets") or [])
        if source := context.params.get("source"):
            root = "" if source == "pages" else ", image_root: r"
            sets.insert(0, f"prepare.train={{source: {source}, path: p{root}}}")
        config = ROOT / "configs/demo.yaml"
        load_config(config, [parse_set(text) for text in sets])


@pytest.mark.parametrize("name", ALL_COMMANDS)
def test_every_command_and_option_has_a_help_text(name: str) -> None:
    command = ALL_COMMANDS[name]
    sentence = command.help.split("\n\n")[0]
    assert sentence[0].isupper() and sentence.endswith(".")
    for parameter in command.params:
        assert len((parameter.help or "").split()) > 1, parameter.name


@pytest.mark.parametrize("command", COMMANDS)
def test_every_commands_help_has_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, "--help") == 0
    assert re.search(rf"Example:\s+perpo\s+{command}", capsys.readouterr().out)


def test_the_help_of_score_names_every_reward() -> None:
    known = {AUTO, *REWARDS}
    assert known <= set(re.findall(r"\w+", ALL_COMMANDS["score"].help))


def test_settings_prints_the_reference_of_one_section_or_of_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("settings", "filter") == 0
    shown = capsys.readouterr().out
    assert "`filter.min_margin`" in shown and "`train.beta`" not in shown
    assert run("settings") == 0
    everything = capsys.readouterr().out
    assert shown.strip() in everything and "`train.beta`" in everything
    assert run("settings", "fitler") == 2
    assert "no section 'fitler'; did you mean 'filter'?" in capsys.readouterr().err


def test_a_typo_in_the_configuration_is_one_message_without_traceback(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workdir / "r.yaml").write_text(CONFIG.replace("num_samples", "num_sample"))
    assert run("sample", "--config", "r.yaml") == 2
    error = capsys.readouterr().err
    assert "sample.num_sample: no such setting; did you mean 'num_samples'?" in error
    assert "Traceback" not in error and not (workdir / "data").exists()


def test_debug_shows_the_traceback(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("score", "--config", "none.yaml", "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, "check the permissions of this file and of the folders above it"),
        (errno.EPERM, "check the permissions"),
        (errno.EROFS, "name a place that can be written"),
        (errno.ESTALE, "check the disk, or the network"),
        (errno.ENOSPC, "free some space"),
    ],
)
def test_what_the_system_refuses_is_one_message_without_traceback(
    workdir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    advice: str,
) -> None:
    def refuse(path: Path) -> bool:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    assert run("inspect", "priv/scores") == 2
    error = capsys.readouterr().err
    assert f"perpo: error: the operating system refused: {os.strerror(number)}" in error
    assert f"where: priv/scores/current (relative to {workdir})" in error
    assert f"fix:   {advice}" in error and "Traceback" not in error
    assert run("inspect", "priv/scores", "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_name_that_is_too_long_is_one_message(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["inspect", "x" * 300], ["status", "--config", f"{'x' * 300}.yaml"]):
        assert run(*arguments) == 2
        error = capsys.readouterr().err
        assert "xxx" in error and "fix:" in error and "Traceback" not in error


def test_an_error_of_the_system_that_no_user_can_correct_stays_a_bug(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_(path: Path) -> bool:
        raise OSError(errno.ENOEXEC, os.strerror(errno.ENOEXEC))

    monkeypatch.setattr(Path, "is_file", break_)
    with pytest.raises(OSError, match="Exec format"):
        cli.main(["inspect", "scores"])


def test_a_stage_without_its_input_names_the_missing_place(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("score", "--config", "r.yaml") == 2
    assert "data/r/samples/train" in capsys.readouterr().err


def test_an_unknown_method_lists_the_known_ones(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "--config", "r.yaml", "--method", "ppo") == 2
    assert "choose one of perpo, sft, dpo, lipo, lipo-lambda" in capsys.readouterr().err


def test_a_second_call_does_nothing_and_says_so(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("prepare", "--config", "r.yaml", "--quiet") == 0
    first = capsys.readouterr()
    assert run("prepare", "--config", "r.yaml", "--quiet") == 0
    second = capsys.readouterr()
    assert second.out == first.out and second.err.count("up to date") == 2


def test_out_places_an_artifact_outright_and_writes_nowhere_else(workdir: Path) -> None:
    assert run("prepare", "--config", "r.yaml", "--split", "train", "--out", "mine") == 0
    assert (workdir / "mine" / "current").is_file()
    assert sorted(p.name for p in workdir.iterdir()) == ["mine", "r.yaml"]


def test_one_out_for_several_splits_is_refused(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("prepare", "--config", "r.yaml", "--out", "mine") == 2
    assert "choose one with --split" in capsys.readouterr().err


def test_inspect_prints_rows_lineage_settings_and_notices_damage(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("prepare", "--config", "r.yaml", "--quiet")
    capsys.readouterr()
    assert run("inspect", "data/r/prompts/test", "--rows", "1", "--verify") == 0
    shown = capsys.readouterr().out
    for expected in ("prompts / test", "rows            4", "schema version  7", "row 1", "preset"):
        assert expected in shown
    (part,) = (workdir / "data/r/prompts/test").glob("*/part-00000.parquet")
    part.write_bytes(part.read_bytes() + b"x")
    assert run("inspect", "data/r/prompts/test", "--verify") == 2
    assert "part-00000.parquet" in capsys.readouterr().err


def test_text_that_the_terminal_cannot_show_is_escaped(workdir: Path) -> None:
    """As with PYTHONIOENCODING=ascii, or a Windows console: no traceback, the rest unchanged."""
    Image.new("RGB", (20, 10)).save(workdir / "a.png")
    row = {"image": "a.png", "prompt": "Où est le café?", "task": "vqa", "gt_text": "là"}
    (workdir / "data.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert run("prepare", "jsonl", "data.jsonl", "--config", "r.yaml", "--out", "o", "--quiet") == 0
    done = subprocess.run(
        [sys.executable, "-m", "perpo_pipeline.cli", "inspect", "o"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        encoding="ascii",
        check=False,
    )
    assert done.returncode == 0 and done.stderr == ""
    assert "prompt: 'O\\xf9 est le caf\\xe9?'" in done.stdout and "gt_text: 'l\\xe0'" in done.stdout


def test_doctor_names_the_packages_and_a_command_for_what_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("doctor") == 0
    shown = capsys.readouterr().out
    assert "torch" in shown and "cuda" in shown
    if "vllm           not installed" in shown:
        assert "pip install -c constraints.txt -e '.[vllm]'" in shown


def test_a_jsonl_file_needs_no_section_in_the_configuration(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    Image.new("RGB", (20, 10)).save(workdir / "a.png")
    (workdir / "mine.jsonl").write_text('{"image": "a.png", "prompt": "?", "gt_text": "x"}\n')
    code = run(
        "prepare",
        "jsonl",
        "mine.jsonl",
        "--task",
        "vqa",
        "--config",
        "r.yaml",
        "--split",
        "mine",
        "--quiet",
    )
    assert code == 0 and "data/r/prompts/mine" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ("prepare", "--per-dataset", "3"),
        ("prepare", "--task", "ocr"),
        ("eval", "--adapter", "somewhere"),
        ("merge", "--adapter", "a", "--out", "o", "--model", "testbed"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(
    workdir: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert run(*arguments, "--config", "r.yaml") == 2
    assert "perpo: error" in capsys.readouterr().err and not (workdir / "data").exists()


def test_ctrl_c_says_that_the_same_command_resumes(
    workdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from perpo_pipeline.prepare import prepare_prompts as stage

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "prepare", interrupted)
    assert run("prepare", "--config", "r.yaml") == 130
    assert "run the same command to resume" in capsys.readouterr().err


REMOVED_OPTIONS = [(command, option) for command, removed in REMOVED.items() for option in removed]


@pytest.mark.parametrize(("command", "option"), REMOVED_OPTIONS)
def test_a_removed_option_names_its_replacement(
    workdir: Path, capsys: pytest.CaptureFixture[str], command: str, option: str
) -> None:
    assert run(command, "--config", "r.yaml", option, "0.25") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"perpo: error: {option} was removed: use ") and error.count("\n") == 1
    assert not (workdir / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "replacement"),
    [
        (("train", "--beta", "0.2"), "use --set train.methods.METHOD.beta=0.2"),
        (("train", "--beta=0.2"), "use --set train.methods.METHOD.beta=0.2"),
        (("train", "--drop-too-long", "--dry-run"), "use --set train.drop_too_long=true"),
        (("train", "--learning-rate"), "use --set train.methods.METHOD.learning_rate=VALUE"),
        (("train", "--variant", "perpo"), "use --method perpo"),
        (("prepare", "--variant", "train"), "use --split train"),
        (("eval", "--variant", "base"), "use --evaluation base"),
        (("eval", "--best-of-n"), "use perpo measure best-of-n"),
        (("prepare", "--split-by", "x=y"), "prepare.SPLIT.split_by={DATASET: NAME}"),
    ],
)
def test_the_replacement_of_a_removed_option_has_the_given_value(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], replacement: str
) -> None:
    assert run(*arguments) == 2
    assert replacement in capsys.readouterr().err


def test_a_removed_option_is_still_unknown_to_its_command() -> None:
    group = typer.main.get_command(cli.app)
    for command, removed in REMOVED.items():
        known = {o for p in group.commands[command].params for o in p.opts}
        assert not known & set(removed), command


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("filter.min_margin=2", "filter.min_margin (--set filter.min_margin=2): Input should be"),
        ("filter.min_margn=0", "filter.min_margn (--set filter.min_margn=0): no such setting; did"),
        ("fliter.min_margin=0", "fliter (--set fliter.min_margin=0): no such setting; did you"),
        ("train.beta=0", "train.beta (--set train.beta=0): Input should be greater than 0"),
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        ("prepare",),
        ("sample",),
        ("score",),
        ("filter",),
        ("train",),
        ("eval",),
        ("report",),
        ("status",),
        ("gc",),
        ("path", "samples"),
        ("run",),
        ("make-rules",),
        ("measure", "best-of-n"),
        ("merge", "--adapter", "a", "--out", "o"),
    ],
    ids=lambda words: "-".join(words[:2]),
)
def test_every_command_that_reads_a_configuration_checks_a_set_like_the_file(
    workdir: Path,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
    setting: str,
    message: str,
) -> None:
    assert run(*command, "--config", "r.yaml", "--set", setting) == 2
    error = capsys.readouterr().err
    assert message in error and f"where: --set {setting}" in error
    assert not (workdir / "data").exists()


def test_a_set_changes_what_a_stage_makes(workdir: Path) -> None:
    sets = ("--set", "prepare.train.num_prompts=3", "--set", "run=other")
    assert run("prepare", "--config", "r.yaml", "--split", "train", *sets, "--quiet") == 0
    (manifest,) = workdir.glob("data/other/prompts/train/*/manifest.json")
    assert json.loads(manifest.read_text())["rows"] == 3


def test_an_option_and_a_set_for_the_same_setting_are_refused(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ("--min-margin", "0.3", "--set", "filter.min_margin=0.4")
    assert run("filter", "--config", "r.yaml", *both) == 2
    error = capsys.readouterr().err
    assert "given twice: --min-margin and --set filter.min_margin=0.4" in error
