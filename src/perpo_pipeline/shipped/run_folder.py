"""The folder of a new run: its configuration, a Makefile, a README, a .gitignore."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from perpo_pipeline.advice import with_pages
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.shipped.files import CONFIGS, OWN_CONFIG
from perpo_pipeline.templates import markdown_environment

_TEMPLATES = Path(__file__).parent / "run_folder"
_GITIGNORE = "/data/\n"


@dataclass(frozen=True)
class Contents:
    """What the README names of a run.

    files, folders: what the recipe reads and perpo does not make; folders hold images.
    has_rounds: `perpo iterate` makes the run, not `perpo run`.
    """

    run: str
    recipe: str
    files: Sequence[str]
    split: str
    method: str
    version: str
    folders: Sequence[str] = ()
    has_rounds: bool = False


def recipe_text(recipe: str) -> str:
    """The text of a configuration that ships."""
    return (CONFIGS / f"{recipe}.yaml").read_text(encoding="utf-8")


def about(recipe: str) -> str:
    """The first sentence of the recipe's own comment."""
    comment = re.match(r"(?:# .*\n)+", recipe_text(recipe))
    words = " ".join((comment[0] if comment else "").replace("# ", "").split())
    return re.split(r"(?<=[^.\d]\.) ", words)[0]


def config_text(recipe: str, run: str, sections: Mapping[str, str], version: str) -> str:
    """The recipe with the run's name and, above each section, what the section is."""
    lines = [
        f"# From the recipe `{recipe}` of perpo {version}. `perpo settings` explains every",
        "# setting, `perpo settings train` those of one section; unknown keys are refused.",
        "#",
    ]
    for line in with_pages(recipe_text(recipe)).splitlines():
        key = line.partition(":")[0]
        if key in sections:
            lines += ["", f"# {sections[key]}"]
        # Quoted where YAML would read no text: a name such as 2026-11-29 or 1.5.
        lines.append(yaml.safe_dump({"run": run}).rstrip() if key == "run" else line)
    return "\n".join(lines) + "\n"


def write_run_folder(folder: Path, config: str, contents: Contents) -> list[Path]:
    """Write the files of a run into `folder`, which is made if needed; returns them.

    Raises ConfigError, with nothing written, if one of them is there already or the folder cannot
    be written.
    """
    makefile = (_TEMPLATES / "Makefile").read_text(encoding="utf-8")
    texts = {
        OWN_CONFIG.name: config,
        "Makefile": makefile,
        "README.md": readme_text(contents),
        ".gitignore": _GITIGNORE,
    }
    if there := [name for name in texts if os.path.lexists(folder / name)]:
        raise ConfigError(
            f"{', '.join(there)}: already there, and nothing was written",
            where=str(folder),
            fix="name a new folder, or move these files away",
        )
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            with (folder / name).open("x", encoding="utf-8") as sink:
                written.append(folder / name)
                sink.write(text)
    except OSError as error:
        for file in written:
            file.unlink()
        raise ConfigError(
            f"the run's files cannot be written: {error.strerror}",
            where=str(error.filename or folder),
            fix="name a folder in which you may write",
        ) from error
    return written


def readme_text(contents: Contents) -> str:
    """The README of the folder, Markdown."""
    template = markdown_environment(_TEMPLATES).get_template("README.md")
    return template.render(**vars(contents), about=about(contents.recipe))
