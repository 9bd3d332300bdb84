"""The metric in which a round must gain: the one that the file names, or the main one of the task.

It is compared prompt by prompt, so it is one that `perpo compare` compares.
"""

from collections.abc import Collection, Iterable

from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.evaluate.metric import Metric
from perpo_pipeline.evaluate.metrics import (
    ANY_NUMBER,
    GROUNDING,
    METRICS,
    POINTING,
    main_metrics,
    tasks_of,
)
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.schemas import PROMPTS
from perpo_pipeline.suggestions import did_you_mean


def check_metric(config: RunConfig) -> None:
    """Raise `ConfigError` for a metric that cannot decide, before anything is made.

    Where only the data say the tasks, `metric_of` checks it once the prompts are there.
    """
    name = config.rounds.metric
    if name is not None and name not in METRICS:
        raise ConfigError(
            f"rounds.metric: there is no metric '{name}'{did_you_mean(name, METRICS)}",
            fix=f"choose one of {', '.join(n for n, m in METRICS.items() if m.compared_on)}",
        )
    splits = [config.rounds.select_on, *filter(None, [config.rounds.report_on])]
    tasks = config.tasks_of(splits)
    if tasks is not None and name is not None and GROUNDING in tasks:
        tasks += [*ANY_NUMBER, POINTING]  # the data say which of these
    if tasks is not None:
        _ = metric_of_tasks(config, tasks)


def metric_of(config: RunConfig, prompts: Iterable[Version]) -> Metric:
    """The metric, given the prompts that are measured; raises `ConfigError`."""
    columns = PROMPTS.pick("task", role="truth")
    return metric_of_tasks(
        config, {task for one in prompts for task in tasks_of(one.table(columns=columns))}
    )


def metric_of_tasks(config: RunConfig, tasks: Collection[str]) -> Metric:
    """The metric, given the tasks as `tasks_of` names them; raises `ConfigError`."""
    usable = [m for m in METRICS.values() if {*tasks} & {*m.compared_on}]
    name = config.rounds.metric
    if name is not None:
        if METRICS[name] not in usable:
            raise ConfigError(
                f"rounds.metric: {name} is not compared prompt by prompt on "
                f"{', '.join(sorted(tasks))}",
                fix=f"choose one of {', '.join(metric.name for metric in usable)}",
            )
        return METRICS[name]
    mains = main_metrics([metric.name for metric in usable])
    if len(mains) > 1:
        raise ConfigError(
            f"the prompts have several tasks ({', '.join(sorted(tasks))}), and rounds.metric names "
            "no metric",
            fix=f"name the one that decides, such as {' or '.join(mains)}",
        )
    return METRICS[mains[0]]
