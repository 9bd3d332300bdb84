"""Advice that a user can type: whole commands, with the --config, --run and --set that were given.

The command line calls `begin`, `open_run` calls `set_run`; processes that answer prompts get
`current` from their parent and `adopt` it. Without these a command is `perpo filter`.
"""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

# Which stage makes an artifact, and the option that names the one variant to make.
STAGE_OF = {
    "prompts": "prepare",
    "samples": "sample",
    "scores": "score",
    "preferences": "filter",
    "reference": "train",
    "adapter": "train",
    "predictions": "eval",
    "harness": "eval",
    "metrics": "eval",
    "report": "report",
}
VARIANT_OPTION = {"prompts": "--split", "adapter": "--method"} | dict.fromkeys(
    ("predictions", "metrics"), "--evaluation"
)
# The commands that read a run's file; a test compares them with the command line.
OF_A_RUN = frozenset(
    {*STAGE_OF.values(), "plan", "make-rules", "status", "gc", "path", "ask", "run", "iterate"}
    | {"browse", "export"}
)
# Of the same command, these change only what is printed, or that anything is done at all.
_LEFT_OUT = frozenset({"--quiet", "--debug", "--json", "--dry-run", "--yes"})
_CODE = Path(__file__).parent
_PATH = re.compile(r"[^\s:,][^:,]*?(?=$|:\d|, |: )")
_FILE = re.compile(r"\.(jsonl?|ya?ml|csv|tsv|parquet|png|jpe?g|webp|pickle|p|txt|html)$")


@dataclass(frozen=True)
class Invocation:
    """How the user called the program: as typed, and what other commands of the run need."""

    program: str = "perpo"
    arguments: tuple[str, ...] = ()
    of_run: tuple[str, ...] = ()


class _Given:
    invocation = Invocation()


def begin(arguments: Sequence[str]) -> None:
    """Take the command line's arguments, from the command's name on."""
    _Given.invocation = Invocation(_program(sys.argv[0]), tuple(arguments))


def set_run(config: Path, run: str | None, sets: Sequence[str]) -> None:
    """Take the run that the command works on: --config, --run (if given) and each --set."""
    named = () if run is None else ("--run", run)
    of_run = ("--config", str(config), *named, *(word for one in sets for word in ("--set", one)))
    _Given.invocation = replace(_Given.invocation, of_run=of_run)


def current() -> Invocation:
    """The invocation, to hand over to another process."""
    return _Given.invocation


def adopt(invocation: Invocation) -> None:
    """Take the invocation of the process that started this one."""
    _Given.invocation = invocation


def was_given(option: str) -> bool:
    """Whether the user typed the option; False also where no command line was given."""
    words = _Given.invocation.arguments
    return any(word == option or word.startswith(f"{option}=") for word in words)


def has_begun() -> bool:
    """Whether a command line was given."""
    return bool(_Given.invocation.arguments)


def command(name: str, *words: str) -> str:
    """The whole command to type, quoted for the shell: `perpo filter --config configs/mine.yaml`.

    `words` are further arguments and options. If `name` is the command that runs, the options that
    it was given are kept (--out, --min-margin, ...), except those that `words` replace.
    """
    given = _Given.invocation
    if given.arguments[:1] == (name,):
        options = {word for word in words if word.startswith("--")}
        kept = [*_without(given.arguments[1:], {*options, *_LEFT_OUT})]
        config = () if was_given("--config") or name not in OF_A_RUN else given.of_run[:2]
        return _join([name, *config, *kept, *words])
    if name not in OF_A_RUN:
        return _join([name, *words])
    return _join([name, *given.of_run[:2], *words, *given.of_run[2:]])


def install(extra: str) -> str:
    """The command that installs one of the extras in pyproject.toml; "" is none of them."""
    extras = f"[{extra}]" if extra else ""
    what = f".{extras}" if _in_project() else f"perpo-pipeline{extras}"
    return install_package(("-e " if _in_project() else "") + (f"'{what}'" if extra else what))


def install_package(package: str) -> str:
    """The command that installs a package in a version that goes with the others."""
    lock = Path("constraints.txt") if _in_project() else _CODE / "shipped" / "constraints.txt"
    return f"pip install -c {shlex.quote(str(lock))} {package}"


def page(name: str) -> str:
    """How a message names a page of the manual, such as `boxes`: docs/boxes.md in the project's
    folder. A wheel has no pages, so elsewhere it is the page's name."""
    return f"docs/{name}.md" if _in_project() else f'the manual\'s page "{name}"'


def with_pages(text: str) -> str:
    """A text of the project whose readers may not have its folder: its pages named by `page`."""
    return re.sub(r"docs/([\w-]+)\.md", lambda found: page(found[1]), text)


def _in_project() -> bool:
    """Whether the code is that of the project's folder, which is installed from there."""
    return (_CODE.parents[1] / "pyproject.toml").is_file()


def remake(artifact: str, variant: str, stage: str | None = None) -> str:
    """The whole command that makes a variant of an artifact.

    `stage` is the stage in its manifest, where that is known: for released lists `prepare` makes
    the samples, and what `perpo measure` or `perpo judge` made needs files that only the user
    knows.
    """
    made_by = stage or STAGE_OF.get(artifact)
    if made_by is None or made_by not in STAGE_OF.values():
        return f"perpo {made_by or artifact} ..."
    option = "--split" if made_by == "prepare" else VARIANT_OPTION.get(artifact)
    return command(made_by) if option is None else command(made_by, option, variant)


def with_folder(where: str) -> str:
    """A place in an error; a relative path is followed by the folder that it is relative to."""
    found = _PATH.match(where)
    path = Path(found[0] if found else "")
    if where.startswith(("-", "/", "~")) or "://" in where or not path.parts:
        return where
    depth = len(path.parts)  # a hub id has two parts; `train.jsonl:2` names a file by its name
    inside = depth == 2 and (os.path.isdir(path.parts[0]) or _FILE.search(str(path)))
    alone = depth == 1 and str(path) == where and _FILE.search(where)
    if not (depth > 2 or inside or alone or os.path.exists(path)):
        return where
    return f"{where} (relative to {Path.cwd()})"


def _join(words: Sequence[str]) -> str:
    return f"{_Given.invocation.program} {shlex.join(words)}"


def _without(arguments: Sequence[str], options: set[str]) -> Iterator[str]:
    """The arguments without some options and their values."""
    skipping = False
    for word in arguments:
        if word.startswith("--"):
            skipping = word.partition("=")[0] in options
            if not skipping:
                yield word
            skipping = skipping and "=" not in word and word not in _LEFT_OUT
        elif skipping:
            skipping = False
        else:
            yield word


def _program(called: str) -> str:
    """How the user can start the program again: `perpo`, or its path where PATH lacks it."""
    path = Path(called)
    found = shutil.which("perpo")
    if path.name != "perpo" or (found and os.path.realpath(found) == os.path.realpath(called)):
        return "perpo"
    near = os.path.relpath(called)
    return shlex.quote(called if near.startswith("..") else near)
