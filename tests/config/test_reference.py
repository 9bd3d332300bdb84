"""The reference of settings: every key of every section, with type, default and meaning."""

import re
import subprocess
import sys
from typing import Any, Literal

import pytest
from pydantic import Field

from perpo_pipeline.config import reference
from perpo_pipeline.config.reference import SECTIONS, render
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.config.section import Int, Section
from perpo_pipeline.config.sources import SOURCE_MODELS
from perpo_pipeline.errors import ConfigError


def keys(prefix: str, model: Any) -> list[str]:
    """The paths of a model's fields, those of models inside it included."""
    found = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        inner = isinstance(kind, type) and issubclass(kind, Section)
        found += keys(f"{prefix}{name}.", kind) if inner else [f"{prefix}{name}"]
    return found


def keys_of(section: str) -> set[str]:
    if section == "run":
        return {"run", "seed", "data_root"}
    if section == "prepare":
        return {key for model in SOURCE_MODELS for key in keys("prepare.SPLIT.", model)}
    found = keys(f"{section}.", RunConfig.model_fields[section].annotation)
    return {key.replace("train.shared.", "train.") for key in found} - {"train.seed"}


def entries(section: str) -> list[tuple[str, ...]]:
    """Path, description, and facts of each entry."""
    entry = r"^`([^`\n]+)`\n:   (.*)  \n    (.*)\n"
    return re.findall(entry, render(section), flags=re.MULTILINE)


def test_every_section_of_a_run_is_on_the_page() -> None:
    assert set(SECTIONS) | {"seed", "data_root"} == set(RunConfig.model_fields)
    headings = re.findall(r"^## (.*)$", render(), flags=re.MULTILINE)
    assert headings == ["Top level", *SECTIONS[1:]]


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_is_listed_for_the_user(section: str) -> None:
    listed = entries(section)
    assert {path for path, _, _ in listed} == keys_of(section)
    assert render(section) in render()
    for path, description, facts in listed:
        assert re.fullmatch(r".{10,}\.", description), f"{path} has no description"
        assert re.fullmatch(
            r".+; (required|default .+); (counts in the fingerprint of `.+`|never counts)\.", facts
        ), path


def test_more_than_a_hundred_settings_are_listed() -> None:
    assert sum(len(entries(section)) for section in SECTIONS) > 100


@pytest.mark.parametrize(
    ("path", "facts"),
    [
        (
            "sample.top_p",
            "Number, above 0, at most 1; default `1.0`; counts in the fingerprint of `samples`.",
        ),
        (
            "sample.num_actors",
            "Whole number, at least 1; default none; never counts.",
        ),
        (
            "model.preprocess",
            "`processor` or `pad`; default `processor`; counts in the fingerprint of `samples`, "
            "`reference`, `adapter` and `predictions`.",
        ),
        (
            "train.scope",
            "List of `language_model`, `projector` or `vision_tower`, at least 1 entry; "
            "default `[language_model]`; counts in the fingerprint of `adapter`.",
        ),
        (
            "train.methods",
            "Mapping of text to settings; default `{perpo: {}}`; "
            "counts in the fingerprint of `adapter`.",
        ),
        (
            "score.reward",
            "Text or mapping of text to number; default `auto`; "
            "counts in the fingerprint of `scores`.",
        ),
        ("data_root", "Path; default `data`; never counts."),
        ("run", "Text, a name; required; counts in the fingerprint of `report`."),
        (
            "train.lora.rank",
            "Whole number, above 0; default `128`; counts in the fingerprint of `adapter`.",
        ),
    ],
)
def test_facts_are_plain_words(path: str, facts: str) -> None:
    section = path.split(".")[0] if "." in path else "run"
    assert (path, facts) in [(name, shown) for name, _, shown in entries(section)]


def test_a_new_source_and_its_settings_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class NewSource(Section):
        """A new layout."""

        source: Literal["new"] = Field(description="the layout to read")
        threads: Int | None = Field(4, ge=1, description="threads that read the file")

    monkeypatch.setattr(reference, "SOURCE_MODELS", (*SOURCE_MODELS, NewSource))
    assert render("prepare").endswith(
        "### Source `new`\n\nA new layout.\n\n"
        "`prepare.SPLIT.source`\n:   The layout to read.  \n"
        "    `new`; required; counts in the fingerprint of `prompts`.\n\n"
        "`prepare.SPLIT.threads`\n:   Threads that read the file.  \n"
        "    Whole number, at least 1; default `4`; counts in the fingerprint of `prompts`.\n"
    )


def test_an_unknown_section_is_reported_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        render("trian")
    assert "no section 'trian'; did you mean 'train'?" in str(caught.value)
    assert "model, prepare, sample, score, filter, train, eval, report" in str(caught.value)


def test_the_reference_needs_no_heavy_package() -> None:
    code = (
        "import sys; from perpo_pipeline.config.reference import render; render(); "
        "print([m for m in ('torch', 'transformers', 'polars', 'pyarrow') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
