"""Every command, option and setting that README and docs/ name exists."""

import ast
import itertools
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from pydantic import ValidationError

from perpo_pipeline import cli
from perpo_pipeline.config.file import load_config
from perpo_pipeline.config.overrides import parse_set
from perpo_pipeline.config.reference import SECTIONS, groups
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.errors import PerpoError
from perpo_pipeline.shipped.run_folder import Contents, readme_text
from perpo_pipeline.sweep.cells import make_cells
from perpo_pipeline.sweep.file import SweepFile

ROOT = Path(__file__).parents[2]
# The commands of extending.md need the changes on that page: test_extending.py runs them.
EXTENDING = ROOT / "docs" / "extending.md"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(page for page in (ROOT / "docs").glob("*.md") if page != EXTENDING),
]
CONFIG = ROOT / "configs" / "demo.yaml"
NO_LEVERS = parse_set("train.levers=[]")  # those of CONFIG are not the pages' subject
COMMANDS: Any = typer.main.get_command(cli.app)
PATHS = {
    setting.path for section in SECTIONS for group in groups(section) for setting in group.settings
}
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
NOT_TRACKED = ("data/", "datasets/", "site/")  # folders of results, and of the user
SOURCES = {".py", ".md", ".mk", ".yaml", ".sbatch", ".html"}
PLACEHOLDER = re.compile(r"^[A-Z][A-Z_.:]*$|\.\.\.|<.*>")


class Wrong(Exception):
    """What a page says that is not so."""


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and text of each fenced block."""
    return FENCE.findall(text)


def lines_of_code(text: str) -> Iterator[str]:
    """Lines of fenced blocks without a language: commands; those that go on are joined."""
    for language, code in blocks(text):
        if not language:
            yield from code.replace("\\\n", " ").splitlines()


def code_spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def check_perpo(line: str, *, whole: bool) -> None:
    """Raise Wrong unless the parser takes the command; a fragment may leave out what it needs."""
    tokens = [token for token in shlex.split(line, comments=True)[1:] if token != "..."]
    command = COMMANDS
    while tokens and hasattr(command, "commands"):
        if PLACEHOLDER.search(tokens[0]) or tokens[0].startswith("-"):
            return
        name = tokens.pop(0)
        if name not in command.commands:
            raise Wrong(f"{line}: no command {name}")
        command = command.commands[name]
    if hasattr(command, "commands") or "--help" in tokens:
        return
    check_sets(tokens, line)
    if not whole:
        _check_options(command, tokens, line)
        return
    try:
        command.make_context(command.name, tokens)
    except Exception as error:
        raise Wrong(f"{line}: {error}") from error


def _check_options(command: Any, tokens: list[str], line: str) -> None:
    known = {name for parameter in command.params for name in parameter.opts}
    for token in tokens:
        if token.startswith("--") and token.split("=")[0] not in known:
            raise Wrong(f"{line}: no option {token}")


def check_sets(tokens: list[str], line: str) -> None:
    """The settings of a command's `--set`, under its `--config` where that exists.

    What `perpo train --method NAME` sets must change that method: a shared setting does not, if
    the file gives the method its own value.
    """
    options = dict(itertools.pairwise(tokens))
    given = [tokens[i + 1] for i, token in enumerate(tokens[:-1]) if token == "--set"]
    config = ROOT / options.get("--config", "")
    config = config if config.is_file() else CONFIG
    loaded = check_settings(given, config, line)
    method, before = options.get("--method"), load_config(config, [NO_LEVERS]).train.variants()
    if given and method in before and loaded.train.variants()[method] == before[method]:
        raise Wrong(f"{line}: this changes nothing of the method {method}")


def check_settings(given: list[str], config: Path, line: str) -> RunConfig:
    """The run's configuration under these settings, without the levers of the embedded runs."""
    overrides = [] if any(text.startswith("train.levers") for text in given) else [NO_LEVERS]
    overrides += [parse_set(text.replace("SPLIT", "train")) for text in given]
    refer = parse_set("prepare.train={source: refer, path: refer, image_root: coco}")
    needs_refer = any(text.startswith("prepare.") for text in given)
    try:
        return load_config(config, [refer] * needs_refer + overrides)
    except PerpoError as error:
        raise Wrong(f"{line}: {error}") from error


def make_targets() -> set[str]:
    """Targets of the Makefile and the stages, and the variables that may be given."""
    texts = [path.read_text() for path in [ROOT / "Makefile", *(ROOT / "stages").glob("*.mk")]]
    return {
        target
        for text in texts
        for names in re.findall(r"^\.PHONY: (.*)$", text, flags=re.MULTILINE)
        for target in names.split()
    }


def check_make(line: str) -> None:
    """Raise Wrong unless the targets, variables, runs and settings of the line exist."""
    makefile = (ROOT / "Makefile").read_text() + (ROOT / "stages/rules.mk").read_text()
    for token in shlex.split(line, comments=True)[1:]:
        name, equals, value = token.partition("=")
        if not equals and token not in make_targets():
            raise Wrong(f"{line}: no target {token}")
        if equals and f"$({name})" not in makefile:
            raise Wrong(f"{line}: no variable {name}")
        runs = [path.stem for path in (ROOT / "configs").glob("*.yaml")]
        if name == "RUN" and equals and value not in [*runs, "NAME", "mine"]:
            raise Wrong(f"{line}: no run {value}")
        if name == "SET" and equals:
            check_settings(value.split(), CONFIG, line)


def check_yaml(text: str) -> None:
    """Raise Wrong unless the sections, put into a run's file, are valid, or the sweep is."""
    if "sweep" in yaml.safe_load(text):
        check_sweep(text)
        return
    given = [
        parse_set(f"{key}={yaml.safe_dump(value, default_flow_style=True, width=10_000)}")
        for key, value in yaml.safe_load(text).items()
    ]
    try:
        load_config(CONFIG, given)
    except PerpoError as error:
        raise Wrong(f"{text}: {error}") from error


def check_sweep(text: str) -> None:
    """Raise Wrong unless this is a sweep's file and its cells are runs of CONFIG."""
    try:
        found = SweepFile.model_validate(yaml.safe_load(text))
        make_cells(found.model_copy(update={"config": CONFIG}), [NO_LEVERS])
    except (PerpoError, ValidationError) as error:
        raise Wrong(f"{text}: {error}") from error


def check_key(span: str) -> None:
    """Raise Wrong if code that looks like a setting, `train.beta` or `train.beta: 0.2`, is none."""
    found = re.match(rf"^((?:{'|'.join(SECTIONS[1:])})\.[\w.]+)(?:: (.+))?$", span)
    if not found or found[1].endswith((".html", ".json", ".md", ".png", ".py", ".yaml")):
        return
    path, value = found.groups()
    holders = {path.rpartition(".")[0] for path in PATHS}
    if path not in PATHS and path not in holders:
        raise Wrong(f"no setting {path}")
    if value is not None:
        check_settings([f"{path}={value}"], CONFIG, span)


def check_page(text: str) -> int:
    """Check all that a page names; returns how many things were checked."""
    found = 0
    for line in lines_of_code(text):
        if line.startswith("perpo "):
            check_perpo(line, whole=True)
        elif line.startswith("make "):
            check_make(line)
        found += line.startswith(("perpo ", "make "))
    for span in code_spans(text):
        if span.startswith("perpo "):
            check_perpo(span, whole=False)
        elif span.startswith("make "):
            check_make(span)
        elif span.startswith("--set "):
            check_sets(shlex.split(span), span)
        check_key(span)
        found += span.startswith(("perpo ", "make ", "--set "))
    for language, code in blocks(text):
        if language == "yaml":
            check_yaml(code)
            found += 1
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_only_what_exists(page: Path) -> None:
    check_page(page.read_text())


def test_the_page_of_a_new_run_names_only_what_exists() -> None:
    found = Contents("cats", "demo", ["a.json"], "train", "perpo", "0.1.0", folders=["images"])
    assert check_page(readme_text(found)) > 6
    assert check_page(readme_text(replace(found, has_rounds=True))) > 6


def test_the_notebook_names_only_what_exists() -> None:
    cells = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())["cells"]
    texts: dict[str, list[str]] = {"code": [], "markdown": []}
    for cell in cells:
        texts[cell["cell_type"]].append("".join(cell["source"]))
    check_page("\n\n".join(texts["markdown"]))
    calls = [text[1:] for text in texts["code"] if text.startswith("!perpo ")]
    for call in calls:
        check_perpo(call, whole=True)
    assert len(calls) > 6


def test_the_pages_name_every_stage_and_more_than_sixty_commands() -> None:
    texts = [page.read_text() for page in PAGES]
    assert sum(check_page(text) for text in texts) > 60
    for command in COMMANDS.commands.values():
        if not command.hidden:
            assert any(f"perpo {command.name}" in text for text in texts), command.name


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("```\nperpo trian --method perpo\n```\n", "no command trian"),
        ("```\nperpo train --variant perpo\n```\n", "--variant"),
        ("```\nperpo train --num-processes many\n```\n", "many"),
        ("```\nperpo measure boxes --out out\n```\n", "Missing parameter: file"),
        ("```\nperpo train --set train.betta=1\n```\n", "train.betta"),
        ("```\nperpo train --set train.beta=-1\n```\n", "train.beta"),
        ("```\nperpo train --method dpo --set train.beta=0.2\n```\n", "changes nothing"),
        ("```\nperpo train --config configs/ci.yaml \\\n  --set run.x=1\n```\n", "run"),
        ("see `perpo sample --bakend vllm`", "no option --bakend"),
        ("see `perpo judge win-rates`", "no command win-rates"),
        ("see `train.max_tokens`", "no setting train.max_tokens"),
        ("see `train.forward: sideways`", "train.forward"),
        ("see `--set filter.strategy=m4po`", "filter.strategy"),
        ("see `make tests`", "no target tests"),
        ("```\nmake all RUM=ci\n```\n", "no variable RUM"),
        ("```\nmake all RUN=cj\n```\n", "no run cj"),
        ('```\nmake all SET="train.lora.rnk=8"\n```\n', "train.lora.rnk"),
        ("```yaml\ntrain:\n  methods:\n    dpo: {betta: 0.1}\n```\n", "betta"),
        ("```yaml\nprepare:\n  train: {source: jsonl, pth: x}\n```\n", "pth"),
        ("```yaml\nsampel: {}\n```\n", "sampel"),
        ("```yaml\nsweep: a\nconfig: b\ngirds: []\n```\n", "girds"),
        (
            "```yaml\nsweep: a\nconfig: b\nreport_on: test\n"
            "grids: [{methods: [dpo], parameters: {train.betta: [1]}}]\n```\n",
            "betta",
        ),
    ],
)
def test_what_does_not_exist_is_found(text: str, wrong: str) -> None:
    with pytest.raises(Wrong) as caught:
        check_page(text)
    assert wrong in str(caught.value)


def test_the_readme_is_short_and_its_tree_exists() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    (tree,) = [code for _, code in blocks(text) if "stages/ " in code]
    package = ROOT / "src" / "perpo_pipeline"
    first = re.findall(r"\(\d\) (\S+)", tree)
    assert len(first) == 5 and all((package / name).is_file() for name in first)
    for line in tree.splitlines():
        inside = package if line.startswith("  ") else ROOT
        for name in re.split(r" {2,}", line.strip())[0].split():
            if name.endswith("/") or "." in name or name == "Makefile":
                assert (inside / name).exists() or name == "data/", name


def files_named(text: str) -> Iterator[Path]:
    """Files and folders that a page names: from the root, or as code inside the package."""
    for name in re.findall(r"(?:configs|stages|benchmarks|tests|src)/[\w./-]*\w", text):
        if not re.search("RUN|NAME|mine", name):
            yield ROOT / name
    for name in code_spans(text):
        is_inside = re.fullmatch(r"[a-z]\w*/[\w/]*(?:\.py|/)", name)
        if is_inside and not name.startswith(NOT_TRACKED):
            yield ROOT / name if (ROOT / name).exists() else ROOT / "src/perpo_pipeline" / name


@pytest.mark.parametrize("page", [*PAGES, EXTENDING], ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    text = FENCE.sub("", text) if page == EXTENDING else text  # its blocks make new files
    assert not [file for file in files_named(text) if not file.exists()]


def test_pages_name_many_files_and_a_wrong_one_is_found() -> None:
    named = [file for page in PAGES for file in files_named(page.read_text())]
    assert len(named) > 40
    (wrong,) = files_named("see `train/loses.py`")
    assert not wrong.exists()


def test_extras_that_pages_name_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [page.read_text() for page in PAGES]
    extras = {extra for text in texts for extra in re.findall(r"-e '\.\[(\w+)\]'", text)}
    assert len(extras) > 3 and not extras - set(project["optional-dependencies"])


def test_pages_that_messages_and_comments_name_exist() -> None:
    folders = [ROOT / "src", ROOT / "configs", ROOT / "benchmarks", ROOT / "stages"]
    files = [f for folder in folders for f in folder.rglob("*") if f.suffix in SOURCES]
    texts = [file.read_text() for file in files]
    named = {name for text in texts for name in re.findall(r"docs/[\w-]+\.md", text)}
    pages = {name for text in texts for name in re.findall(r"\bpage\([\"']([\w-]+)", text)}
    assert len(named) > 3 and len(pages) > 10
    named |= {f"docs/{name}.md" for name in pages}
    assert not {name for name in named if not (ROOT / name).is_file()} - {"docs/settings.md"}


def texts_that_are_printed(source: str) -> Iterator[str]:
    """The strings of a module; docstrings are for who reads the code."""
    tree = ast.parse(source)
    bodies = [body for node in ast.walk(tree) if isinstance(body := getattr(node, "body", 0), list)]
    alone = {line.value for body in bodies for line in body if isinstance(line, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in alone:
            yield node.value


def test_messages_name_pages_as_they_can_be_found() -> None:
    """By `advice.page`: a wheel has no docs/. Docstrings of commands are printed as their help."""
    source = ROOT / "src/perpo_pipeline"
    found = []
    for file in source.rglob("*.py"):
        text = file.read_text()
        printed = [text] if file.parent.name == "commands" else texts_that_are_printed(text)
        found += [(file, one) for one in printed if re.search(r"docs/[\w-]+\.md", one)]
    assert not found


def test_the_picture_of_the_rooms_is_current() -> None:
    from tools.manual.rooms_picture import PICTURE, draw

    assert PICTURE.read_text() == draw(), "run: python -m tools.manual.rooms_picture"
