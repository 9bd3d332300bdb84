"""What the sections of a run's file are made of; run.py puts them together."""

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

Json = dict[str, Any]
LARGEST_SEED = 2**63 - 1  # what whole numbers of 64 bits hold, in tables and elsewhere
NAME_PATTERN, WORD_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$", r"^\S+$"
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=80)]


def _no_truth_value(value: Any) -> Any:
    """YAML's true would pass as 1."""
    if isinstance(value, bool):
        raise ValueError("Input should be a number, not true or false")
    return value


Int = Annotated[int, BeforeValidator(_no_truth_value)]
Float = Annotated[float, BeforeValidator(_no_truth_value)]


def _as_forms(value: Any) -> Any:
    """`none` is no normal form, a single name is a list of one; forms have one order."""
    names = [] if value == "none" else [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or len(set(map(str, names))) < len(names):
        raise ValueError("give none, one of nfc, markdown, whitespace, or a list of them")
    order = ("nfc", "markdown", "whitespace")
    return sorted(names, key=lambda name: order.index(name) if name in order else -1)


NormalForms = Annotated[list[Literal["nfc", "markdown", "whitespace"]], BeforeValidator(_as_forms)]
"""Normal forms of texts: rewards/normalise.py."""


class Section(BaseModel):
    """A section of the run's file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    operational: ClassVar[frozenset[str]] = frozenset()
    counted_by_content: ClassVar[frozenset[str]] = frozenset()  # of those: names of what counts
    by_task: ClassVar[tuple[str, ...]] = ()
    totals: ClassVar[frozenset[str]] = frozenset()  # of `by_task`: one value is for all together
    counted_where_set: ClassVar[frozenset[str]] = frozenset()

    @property
    def differs_by_task(self) -> bool:
        """Whether a setting has several values, by task (by_task.py)."""
        return any(isinstance(getattr(self, name), Mapping) for name in self.by_task)

    def values_by_task(self, name: str) -> Json:
        """The values of the settings that may differ by task, by their keys in section `name`."""
        return {f"{name}.{one}": getattr(self, one) for one in self.by_task}

    def for_tasks(self, tasks: Collection[str]) -> Self:
        """The section for prompts of these tasks, each of which its mappings name.

        A setting with the same value for all of them is that value, so that prompts of one task do
        not depend on the values of others; except `totals`, of which one value means another thing.
        """
        update = {}
        for name in self.by_task:
            if isinstance(value := getattr(self, name), Mapping):
                own = {task: value[task] for task in value if task in tasks}
                several = set(own) if name in self.totals else set(own.values())
                update[name] = own if len(several) != 1 else next(iter(own.values()))
        return self.model_copy(update=update)

    def result_settings(self) -> Json:
        """The settings that change the result, for the fingerprint.

        Those that came later and do nothing unless they are set count only where they are set.
        """
        unset = {name for name in self.counted_where_set if getattr(self, name) is None}
        return self.model_dump(mode="json", exclude={*self.operational, *unset})


def conflict(message: str, *settings: str) -> PydanticCustomError:
    """The error for settings of one section that do not fit together, with their names."""
    return PydanticCustomError("conflict", "{message}", {"message": message, "settings": settings})


def several_faults(faults: Sequence[tuple[str, str]]) -> PydanticCustomError:
    """The error for several faults at once: (dotted setting, what is wrong)."""
    message = "; ".join(f"{setting}: {what}" for setting, what in faults)
    return PydanticCustomError("faults", "{message}", {"message": message, "faults": faults})
