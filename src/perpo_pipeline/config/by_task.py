"""Settings that may differ by task: one value, or a mapping such as `{grounding: 0.8, ocr: 0.04}`.

A mapping must name every task of the prompts that the setting serves, and no other: a value that
nothing reads can only be a mistake.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

import annotated_types
from pydantic import Discriminator, Tag

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.suggestions import did_you_mean

if TYPE_CHECKING:
    from perpo_pipeline.config.section import Section
    from perpo_pipeline.store.artifacts import Version

AnySection = TypeVar("AnySection", bound="Section")
Task = Literal["grounding", "ocr", "vqa"]
TASKS: tuple[str, ...] = get_args(Task)
ONE, BY_TASK = "one value", "by task"
"""Steps in pydantic's locations that are not keys of the file."""
Value = TypeVar("Value")


def _shape(value: Any) -> str:
    return BY_TASK if isinstance(value, Mapping) else ONE


ByTask = Annotated[
    Annotated[Value, Tag(ONE)]
    | Annotated[dict[Task, Value], annotated_types.MinLen(1), Tag(BY_TASK)],
    Discriminator(_shape),
]
"""A value for all tasks, or one for each."""


def of_task(value: Any, task: str | None) -> Any:
    """The value for prompts of a task; `task` is not read where one value serves all.

    Raises KeyError for a task that a mapping does not name.
    """
    return value[task] if isinstance(value, Mapping) else value


def values_of(value: Any) -> list[Any]:
    """The value, or those of all tasks."""
    return list(value.values()) if isinstance(value, Mapping) else [value]


def task_faults(
    settings: Mapping[str, Any], tasks: Collection[str], what: str
) -> list[tuple[str, str]]:
    """(setting, fault) for each task that a mapping among `settings` lacks, or has in vain.

    `settings` are values by dotted key; `what` names the prompts, which have these `tasks`.
    """
    faults = []
    for key, value in settings.items():
        if not isinstance(value, Mapping):
            continue
        missing = [task for task in tasks if task not in value]
        if missing:
            faults.append((key, f"names no value for {' and '.join(missing)}, a task of {what}"))
        for task in (task for task in value if task not in tasks):
            near = did_you_mean(task, missing) if missing else ""
            faults.append((f"{key}.{task}", f"no prompt of {what} has this task{near}"))
    return faults


def check_tasks(section: Any, name: str, tasks: Collection[str], what: str) -> None:
    """Raise ConfigError if the section `name` has no value for a task of these prompts.

    A value for another task is no fault here: other prompts may have it.
    """
    values = section.values_by_task(name)
    missing = [(key, fault) for key, fault in task_faults(values, tasks, what) if key in values]
    if missing:
        key = missing[0][0]
        task = next(task for task in tasks if task not in values[key])
        raise ConfigError(
            "; ".join(f"{setting} {fault}" for setting, fault in missing),
            fix=f"add it, e.g. --set {key}.{task}=VALUE",
        )


def fit_to_tasks(section: AnySection, name: str, prompts: "Version") -> AnySection:
    """The section `name` for the tasks of these prompts; ConfigError if it lacks one of them."""
    if not section.differs_by_task:
        return section
    tasks = prompts.table(columns=["task"])["task"].unique().to_pylist()
    check_tasks(section, name, tasks, f"{prompts.artifact}/{prompts.variant}")
    return section.for_tasks(tasks)


def in_words(value: Any) -> str:
    """A number, or those of all tasks: `0.8 (grounding), 0.04 (ocr)`."""
    if not isinstance(value, Mapping):
        return "none" if value is None else f"{value:,g}"
    return ", ".join(f"{in_words(one)} ({task})" for task, one in value.items())
