"""docs/models.md: its tables are those of the last run and of FAMILIES."""

from copy import deepcopy
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING
from with_vllm import hub_models as with_vllm

from perpo_pipeline.vlm.families import FAMILIES
from tools.manual import models_run
from tools.manual.models_table import (
    EXACT,
    OTHERS,
    PAGE,
    THINKING,
    VLLM,
    added,
    main,
    models_page,
    read_record,
)


def tables(page: str) -> tuple[list[list[str]], list[list[str]]]:
    """The cells of the rows of both tables."""
    found = []
    for name in ("exact", "others"):
        between = page.split(f"<!-- {name}: begin -->")[1].split(f"<!-- {name}: end -->")[0]
        lines = [line for line in between.splitlines() if line.startswith("|")]
        found.append([[cell.strip() for cell in line[1:-1].split("|")] for line in lines[2:]])
    return found[0], found[1]


def test_the_page_is_what_the_tool_writes() -> None:
    page = PAGE.read_text()
    assert models_page(read_record(), page) == page, "run python -m tools.manual.models_table"


def test_every_family_is_in_the_first_table_and_no_other_type_twice() -> None:
    exact, others = tables(PAGE.read_text())
    torchvision_only = ["cohere2_vision", "lfm2_vl"]
    passing = [f"`{name}`" for name in FAMILIES if name not in torchvision_only]
    assert [row[0] for row in exact] == passing
    assert [row[0] for row in others[:2]] == [f"`{name}`" for name in torchvision_only]
    assert all(len(row) == len(EXACT) for row in exact) and all(len(row) == 3 for row in others)
    assert all(float(row[3]) < 1e-4 and float(row[4]) < 1e-4 for row in exact)
    assert set(THINKING) <= set(FAMILIES)


def test_what_is_said_of_vllm_is_what_its_tests_cover() -> None:
    exactly = [name for name, found in VLLM.items() if found == "yes"]
    assert sorted(exactly) == sorted((*with_vllm.FAMILIES, *with_vllm.FURTHER))
    assert set(VLLM) <= set(FAMILIES)


def test_the_others_are_names_of_transformers() -> None:
    assert all(name in CONFIG_MAPPING for name, _, _ in OTHERS)


@pytest.mark.parametrize(
    ("figure", "found", "reason"),
    [
        ("logps", 2e-4, "log-probabilities differ by 2e-04"),
        ("logps", float("nan"), "log-probabilities differ by nan"),
        ("gradients", 0.5, "gradients differ by 5e-01"),
        ("loads", "no", "exact on its tiny model, but not loaded: "),
        (None, None, "not in the last run"),
    ],
)
def test_a_family_that_is_not_exact_moves_to_the_second_table(
    figure: str | None, found: float | str | None, reason: str
) -> None:
    record = deepcopy(read_record())
    if figure is None:
        del record["models"]["gemma3"]
    else:
        record["models"]["gemma3"][figure] = found
    exact, others = tables(models_page(record, PAGE.read_text()))
    assert len(exact) == len(FAMILIES) - 3 and "`gemma3`" not in [row[0] for row in exact]
    assert others[0][:2] == ["`gemma3`", "Gemma 3"] and others[0][2].startswith(reason)


def test_a_run_over_some_families_changes_theirs_alone() -> None:
    record = read_record()
    found = {"versions": record["versions"], "models": {"gemma3": {"speed": 9.0}}}
    merged = added(record, found)
    assert merged["models"] == record["models"] | {"gemma3": {"speed": 9.0}}
    with pytest.raises(SystemExit, match="run over all families"):
        added(record, found | {"versions": {"torch": "1.0"}})
    with pytest.raises(SystemExit, match="usage"):
        main(["--run", "homebrew"])


def test_a_run_finds_what_the_page_says(tmp_path: Path) -> None:
    """The exact figures depend on the machine; speed is only a figure."""
    found = models_run.measure("gemma3", tmp_path)
    said = read_record()["models"]["gemma3"]
    assert (found.sees, found.prompt) == (said["sees"], said["prompt"])
    assert max(found.logps, found.gradients, found.merged) < 1e-4 and found.speed > 0


def test_a_run_sees_a_wrong_shared_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gap in the positions of the packed row."""
    original = models_run.pack_lists

    def wrong(*given: object, **named: object) -> object:
        packed = original(*given, **named)  # type: ignore[arg-type]
        packed.positions[..., 100:] += 1
        return packed

    monkeypatch.setattr(models_run, "pack_lists", wrong)
    assert models_run.measure("gemma3", tmp_path).logps > 1e-3
