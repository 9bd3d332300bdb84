"""Views hold the right prompts, and sort and filter them as the artifacts' own rows say."""

from typing import Any

import pytest
from browsed_run import Browsed

from perpo_pipeline.browse.state import State
from perpo_pipeline.browse.views import View
from perpo_pipeline.errors import InputError


def ids(view: View, **filters: Any) -> list[str]:
    state = State(view.name, **filters)
    return [row["prompt_id"] for row in view.shown(view.order(state), state)]


@pytest.fixture(scope="module")
def rewards(boxes: Browsed) -> dict[str, list[float]]:
    """The rewards of each sampled prompt, from the scores themselves."""
    found: dict[str, list[float]] = {}
    for row in boxes.run.latest("scores", "train").table().to_pylist():
        found.setdefault(row["prompt_id"], []).append(row["reward"])
    return found


def test_every_sampled_prompt_is_in_the_lists_or_among_the_dropped(
    boxes: Browsed, rewards: dict[str, list[float]]
) -> None:
    preferences = boxes.run.latest("preferences", "train")
    dropped = [row["prompt_id"] for row in preferences.table("dropped").to_pylist()]
    assert ids(boxes.views["lists"]) == preferences.table()["prompt_id"].to_pylist()
    assert sorted(ids(boxes.views["dropped"])) == sorted(dropped) and dropped
    assert ids(boxes.views["samples"]) == list(rewards)
    assert list(boxes.views) == ["lists", "dropped", "samples", "predictions/test"]


def test_lists_are_sorted_and_bounded_by_their_numbers(
    boxes: Browsed, rewards: dict[str, list[float]]
) -> None:
    samples = boxes.views["samples"]
    mean = {key: sum(own) / len(own) for key, own in rewards.items()}
    margin = {key: max(own) - min(own) for key, own in rewards.items()}
    found = ids(samples, sort="-mean")
    assert found != ids(samples)
    assert [round(mean[key], 9) for key in found] == sorted(
        (round(value, 9) for value in mean.values()), reverse=True
    )
    wide = ids(samples, limits=(("margin", 0.5, 0.9),), sort="margin")
    assert wide and set(wide) == {key for key, value in margin.items() if 0.5 <= value <= 0.9}
    assert [margin[key] for key in wide] == sorted(margin[key] for key in wide)


def test_dropped_lists_are_chosen_by_reason(boxes: Browsed) -> None:
    dropped = boxes.run.latest("preferences", "train").table("dropped").to_pylist()
    view = boxes.views["dropped"]
    assert set(view.reasons) == {row["reason"] for row in dropped}
    for reason in view.reasons:
        assert set(ids(view, reason=reason)) == {
            row["prompt_id"] for row in dropped if row["reason"] == reason
        }


def test_questions_are_searched_in_any_case_without_the_instruction_around_them(
    boxes: Browsed,
) -> None:
    view = boxes.views["samples"]
    prompts = boxes.run.latest("prompts", "train").table().to_pylist()
    seven = [row["prompt_id"] for row in prompts if ">7</b>" in row["prompt"]]
    assert ids(view, q='WHERE IS <B ONCLICK="alert(3)">7<') == seven and len(seven) == 1
    assert ids(view, q=seven[0]) == seven
    assert ids(view, q="drawn, box 7") == seven
    assert "region" in prompts[0]["prompt"] and ids(view, q="region") == []
    assert ids(view, q="where", dataset="another") == []


def test_disagreement_of_two_models_is_that_of_their_predictions(boxes: Browsed) -> None:
    view = boxes.views["predictions/test"]
    first, second = (
        {
            row["prompt_id"]: row["reward"]
            for row in boxes.run.latest("predictions", f"{model}@test").table().to_pylist()
        }
        for model in ("sft", "perpo")
    )
    change = {key: second[key] - first[key] for key in first}
    found = ids(view, a="sft", b="perpo", sort="-disagree", limits=(("disagree", 0.3, None),))
    assert set(found) == {key for key, value in change.items() if abs(value) >= 0.3}
    sizes = [abs(change[key]) for key in found]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) > 3
    lost = ids(view, a="sft", b="perpo", sort="change")[0]
    assert change[lost] == min(change.values()) < 0
    assert view.pair(State(view.name)) == ("base", "perpo")


def test_prompts_that_a_model_was_not_asked_come_last_and_match_no_bound(boxes: Browsed) -> None:
    view = boxes.views["predictions/test"]
    column = "reward.base-other-image"
    asked = boxes.run.latest("predictions", "base-other-image@test").table()["prompt_id"]
    assert 0 < len(asked) < view.rows.height
    for sort in (column, f"-{column}"):
        assert set(ids(view, sort=sort)[: len(asked)]) == set(asked.to_pylist())
    assert set(ids(view, limits=((column, 0.0, None),))) == set(asked.to_pylist())


@pytest.mark.parametrize(
    ("view", "filters", "message"),
    [
        ("predictions/test", {"b": "pepro"}, "names the model pepro, which has no predictions"),
        ("predictions/test", {"reason": "over_cap"}, "asks for a reason, which this view has not"),
    ],
)
def test_a_filter_that_the_view_has_not_is_refused(
    boxes: Browsed, view: str, filters: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ids(boxes.views[view], **filters)
