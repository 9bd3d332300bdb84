from collections import Counter

import numpy as np
import pytest

from perpo_pipeline.answers.boxes import BOX_FORMATS
from perpo_pipeline.answers.formats import shown_question
from perpo_pipeline.report.pictures import choose, outcomes_of

IDS = [f"prompt-{i}" for i in range(60)]
OUTCOMES = ["improved", "unchanged", "worsened"] * 20


def test_a_box_improves_if_it_becomes_right_not_if_it_only_gets_closer():
    before, after = np.array([0.49, 0.5, 0.1, 0.9]), np.array([0.5, 0.49, 0.4, 0.6])
    found = outcomes_of(before, after, is_grounding=True)
    assert found == ["improved", "worsened", "unchanged", "unchanged"]


def test_a_text_improves_with_any_gain():
    before, after = np.array([0.1, 0.4, 0.4]), np.array([0.2, 0.3, 0.4])
    found = outcomes_of(before, after, is_grounding=False)
    assert found == ["improved", "worsened", "unchanged"]


@pytest.mark.parametrize(
    ("wanted", "shares"), [(12, (6, 3, 3)), (8, (4, 2, 2)), (5, (3, 1, 1)), (1, (1, 0, 0))]
)
def test_half_improved_a_quarter_unchanged_a_quarter_worsened(wanted, shares):
    count = Counter(OUTCOMES[i] for i in choose(IDS, OUTCOMES, wanted))
    assert (count["improved"], count["unchanged"], count["worsened"]) == shares


def test_the_choice_does_not_depend_on_the_order_of_the_rows():
    order = np.random.default_rng(0).permutation(60)
    ids, outcomes = [IDS[i] for i in order], [OUTCOMES[i] for i in order]
    assert [ids[i] for i in choose(ids, outcomes, 12)] == [
        IDS[i] for i in choose(IDS, OUTCOMES, 12)
    ]


def test_if_none_worsened_no_other_outcome_fills_the_place():
    outcomes = ["improved"] * 30 + ["unchanged"] * 30
    assert Counter(outcomes[i] for i in choose(IDS, outcomes, 12)) == {
        "improved": 6,
        "unchanged": 3,
    }


@pytest.mark.parametrize("name", BOX_FORMATS)
def test_an_expression_is_shown_without_its_instruction(name):
    assert shown_question(BOX_FORMATS[name].ask("the cat")) == "the cat"
    assert shown_question("Where is the cat?") == "Where is the cat?"
