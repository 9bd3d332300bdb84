"""`perpo init`: the folder of a run, for work outside the project's own."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perpo_pipeline.commands.options import Debug
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.shipped.files import CONFIGS, closest_name, config_names

if TYPE_CHECKING:
    from perpo_pipeline.config.run import RunConfig
    from perpo_pipeline.shipped.run_folder import Contents


def init(
    folder: Annotated[Path, typer.Argument(help="the folder; made if it is not there")],
    recipe: Annotated[
        str, typer.Option(help=f"the configuration to begin with: {', '.join(config_names())}")
    ] = "demo",
    run: Annotated[
        str | None, typer.Option("--run", help="name of the run; default: the folder's name")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write the folder of a new run, to work outside the project.

    It gets a configuration, a Makefile, a README and a .gitignore. perpo.yaml there is a recipe
    that ships with perpo, with what each section is; commands read it there without --config.
    Nothing is overwritten. Prints the files.

    Example: perpo init cats

    Example: perpo init glasses --recipe llava15-grounding
    """
    from perpo_pipeline import __version__
    from perpo_pipeline.config.file import load_config
    from perpo_pipeline.config.reference import SECTIONS, groups
    from perpo_pipeline.config.section import NAME_PATTERN
    from perpo_pipeline.shipped.run_folder import config_text, write_run_folder

    if recipe not in config_names():
        near = closest_name(Path(recipe))  # also of `configs/demo.yaml`
        raise ConfigError(
            f"--recipe {recipe}: no such recipe" + (f"; did you mean '{near}'?" if near else ""),
            fix=f"choose one of {', '.join(config_names())}",
        )
    name = run or folder.resolve().name
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(
            f"'{name}' cannot be the name of a run: letters, digits, '.', '_' and '-', beginning "
            "with a letter or digit",
            fix="give another with --run NAME",
        )
    sections = {one: next(iter(groups(one))).introduction for one in SECTIONS[1:]}
    sections["prepare"] = "Where the prompts and their truths come from, for each split."
    text = config_text(recipe, name, sections, __version__)
    contents = _contents(load_config(CONFIGS / f"{recipe}.yaml"), name, recipe)
    for file in write_run_folder(folder, text, contents):
        print(file)


def _contents(config: "RunConfig", run: str, recipe: str) -> "Contents":
    """What the README says: the files that the recipe reads, and the commands of this run."""
    from perpo_pipeline import __version__
    from perpo_pipeline.config.sources import image_folders, source_files
    from perpo_pipeline.shipped.run_folder import Contents

    sources = config.prepare.values()
    return Contents(
        run=run,
        recipe=recipe,
        files=list(dict.fromkeys(str(file) for one in sources for file in source_files(one))),
        split=config.sample.split,
        method=[*config.train.variants()][-1],
        version=__version__,
        folders=list(dict.fromkeys(str(found) for one in sources for found in image_folders(one))),
        has_rounds="rounds" in config.model_fields_set,
    )
