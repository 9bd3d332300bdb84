"""The model cards in the repository say what was measured, and with which settings."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from safetensors import safe_open

from perpo_pipeline.testbed import shipped_model_dir
from tools.testbed.card import figure_table, model_card
from tools.testbed.pretrain import EVAL_EXAMPLES, parse_options, recipe_of
from tools.testbed.recipe import RECIPES

TESTBED = Path(__file__).parents[3] / "tools" / "testbed"
CLEAN_DIR, SHORT_DIR = TESTBED / "clean", TESTBED / "short"


def record_of(folder):
    return json.loads((folder / "testbed.json").read_text())


def number_of_parameters(folder):
    with safe_open(folder / "model.safetensors", "pt") as weights:
        return sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118


@pytest.mark.parametrize("folder", [shipped_model_dir(), CLEAN_DIR, SHORT_DIR])
def test_a_card_is_what_the_code_writes_of_its_record(folder):
    card, record = (folder / "README.md").read_text(), record_of(folder)
    (command,) = re.findall(r"`(.* -m tools.testbed.pretrain .*)`", card)
    given = command.partition(" -m tools.testbed.pretrain ")[2]
    assert asdict(recipe_of(parse_options(given.split()))) == record["recipe"]
    side = json.loads((folder / "config.json").read_text())["vision_config"]["image_size"]
    assert card == model_card(
        preset=record["preset"],
        phase=record["phase"],
        side=side,
        parameters=number_of_parameters(folder),
        count=2 * EVAL_EXAMPLES,
        figures=record["figures"],
        clean=record.get("clean_figures"),
        recipe=record["recipe"],
        command=command,
    )


def test_the_default_recipe_is_the_one_of_the_weights():
    """So the documented command, which names no settings, trains with those of the weights."""
    shipped, clean = record_of(shipped_model_dir()), record_of(CLEAN_DIR)
    assert shipped["recipe"] == clean["recipe"] == asdict(RECIPES["small"])
    assert (shipped["phase"], clean["phase"]) == ("misaligned", "clean")
    assert shipped["clean_figures"] == clean["figures"]


def test_the_card_of_a_model_of_scenes_says_nothing_of_pages():
    card = (SHORT_DIR / "README.md").read_text()
    assert record_of(SHORT_DIR)["recipe"]["pages"] == 0
    assert "Transcribe" not in card and "edit_distance" not in card
    assert "--pages 0 --vision-steps 500" in card


def test_a_table_of_figures_has_a_column_for_the_clean_model_if_there_is_one():
    alone = figure_table({"ap50": 0.6055}, None)
    assert alone.splitlines()[-1] == "| ap50 | 0.606 |"
    beside = figure_table({"ap50": 0.6055}, {"ap50": 0.9219, "miou": 0.8})
    assert beside.splitlines()[-1] == "| ap50 | 0.606 | 0.922 |"
