"""Versions that older rules made are found again, instead of being made a second time.

A fingerprint changes whenever a schema or stage version rises or a setting appears, also where the
content stays as it was. `RULES` says what each change meant, so that a manifest of an older rule
can be compared with today's recipe. Whoever changes a rule adds to it (CONTRIBUTING.md); the tests
hold manifests of every older rule, and pin today's fingerprints.

A version is found again with one of these degrees of `Trust`:

- SAME: today's stage writes the same content from the same recipe.
- CONFIRM: it does for some models or data only; the stage looks, without making it anew.
- COMPARE: the stage may write other content, but is cheap: it is made anew and compared. The older
  version stays in use where they are equal, so that what was made from it is found again, too.
- ANSWERS: the answers of a model are the same, what is measured of them may not be: predictions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

Json = dict[str, Any]


class Trust(Enum):
    """How much of an older version stays as it was."""

    SAME = "same"
    CONFIRM = "confirm"
    COMPARE = "compare"
    ANSWERS = "answers"


def _unchanged(settings: Json) -> Json:
    return settings


@dataclass(frozen=True)
class Rule:
    """What older recipes of one stage mean today.

    `renamed` gives settings their names and values of today. `neutral` are settings that did not
    exist at some time, with the value that means what happened before; `dropped` are settings that
    are gone because the inputs say the same. `stages` has the older stage versions that can be
    found again, `schemas` and `other_schema` the trust where only the schema version is older.
    """

    renamed: Callable[[Json], Json] = _unchanged
    neutral: Mapping[str, object] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    stages: Mapping[int, Trust] = field(default_factory=dict)
    schemas: Mapping[int, Trust] = field(default_factory=dict)
    other_schema: Trust = Trust.SAME

    def meaning(self, settings: Json) -> Json:
        """The settings without those that change nothing: two recipes that agree are the same."""
        return {
            name: value
            for name, value in self.renamed(dict(settings)).items()
            if name not in self.dropped and (name, value) not in self.neutral.items()
        }


def _of_prompts(settings: Json) -> Json:
    """The testbed rendered scenes alone before it had a task; the unit had another name."""
    if settings.get("source") == "testbed":
        return {"task": "grounding", **settings}
    return _unit(settings)


def _unit(settings: Json) -> Json:
    """The unit of true boxes had another name, and so had its values."""
    if "gt_unit" not in settings:
        return settings
    named = {"pixels": "px", "fraction": "norm"}
    rest = {name: value for name, value in settings.items() if name != "gt_unit"}
    return {**rest, "unit": named.get(settings["gt_unit"], settings["gt_unit"])}


def _one_reward(settings: Json) -> Json:
    """A single reward was a name before it was a table of weights."""
    reward = settings.get("reward")
    return {**settings, "reward": {reward: 1.0}} if isinstance(reward, str) else settings


def _separate(settings: Json) -> Json:
    """The forward `separate` was called `concatenated`."""
    was = settings.get("forward") == "concatenated"
    return {**settings, "forward": "separate"} if was else settings


def _of_predictions(settings: Json) -> Json:
    """A reward was a name, `iou` where it is `auto` today; wrong images had another setting."""
    found = _one_reward(settings)
    if found.get("reward") == {"iou": 1.0}:
        found = {**found, "reward": {"auto": 1.0}}
    if "other_image_prompts" in found:
        found["condition_prompts"] = found.pop("other_image_prompts")
    return found


_READING = {"thinking": "auto", "tag": "answer", "which": "first"}

# By artifact and the stage that makes it. What is not listed is cheap, and made anew.
RULES: dict[tuple[str, str], Rule] = {
    ("prompts", "prepare"): Rule(
        renamed=_of_prompts,
        neutral={
            "leave_out_bad_rows": False,
            "columns": {},
            "box": "xyxy",
            "unit": None,
            "testbed_version": 1,
        },
        stages=dict.fromkeys((1, 2, 3), Trust.COMPARE),
        # Other columns of a row were an error in 5; those that 7 adds are null in all before.
        schemas=dict.fromkeys((5, 6), Trust.SAME),
        other_schema=Trust.COMPARE,
    ),
    # Version 2 takes other backends; what transformers draws is what version 1 drew.
    ("samples", "sample"): Rule(
        neutral={"top_k": None, "top_p": 1.0, "repetition_penalty": 1.0},
        stages={1: Trust.SAME},
    ),
    # Released lists: their answers and scores come from a file.
    ("samples", "prepare"): Rule(stages={1: Trust.COMPARE}),
    ("scores", "prepare"): Rule(neutral=_READING, stages={1: Trust.COMPARE}),
    ("scores", "score"): Rule(
        renamed=_one_reward,
        neutral={**_READING, "normalise": [], "own_rewards": {}},
        stages=dict.fromkeys((1, 2), Trust.COMPARE),
    ),
    ("preferences", "filter"): Rule(
        neutral={
            "max_margin": None,
            "list_size": None,
            "drop_unparsed": False,
            "equal_datasets": False,
            "strategy": "lists",
        },
        stages={1: Trust.COMPARE},
    ),
    # Version 1 was another engine: its sums differ.
    ("reference", "reference"): Rule(renamed=_separate),
    # Version 3 is that of methods that train on the truth: an answer ends as the template ends it.
    ("adapter", "train"): Rule(renamed=_separate, stages={2: Trust.CONFIRM}),
    # The split was a setting before it was part of the name: the prompts say the same.
    ("predictions", "eval"): Rule(
        renamed=_of_predictions,
        neutral={**_READING, "normalise": [], "backend": "transformers"},
        dropped=frozenset({"split"}),
        stages=dict.fromkeys((1, 2, 3), Trust.ANSWERS),
    ),
    ("metrics", "eval"): Rule(),
    ("judgements", "judge"): Rule(),
}


def as_today(artifact: str, stage: str, settings: Json) -> Json:
    """Recorded settings under today's names, for all who read them."""
    return RULES.get((artifact, stage), Rule()).renamed(dict(settings))


def same_settings(artifact: str, stage: str, first: Json, second: Json) -> bool:
    """Whether two versions' settings mean the same, by whatever rules they were recorded."""
    rule = RULES.get((artifact, stage), Rule())
    return rule.meaning(first) == rule.meaning(second)
