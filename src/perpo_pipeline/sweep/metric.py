"""The metric that decides: the one that the file names, or the main one of the task."""

from collections.abc import Collection, Iterable

from perpo_pipeline import advice
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.evaluate.metric import Metric
from perpo_pipeline.evaluate.metrics import (
    ANY_NUMBER,
    GROUNDING,
    METRICS,
    POINTING,
    main_metrics,
    measured_metrics,
    tasks_of,
)
from perpo_pipeline.evaluate.summarise import QUESTION_COLUMNS
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.suggestions import did_you_mean
from perpo_pipeline.sweep.file import SweepFile


def check_metric(sweep: SweepFile, config: RunConfig) -> None:
    """Raise `ConfigError` for a metric that no prompt of these tasks can have.

    Checks what the configuration says alone: where only the data say the tasks, `find_metric_of`
    checks it once the prompts are there.
    """
    tasks = config.tasks_of(sweep.splits)
    if sweep.metric is not None and sweep.metric not in METRICS:
        raise ConfigError(
            f"metric: there is no metric '{sweep.metric}'{did_you_mean(sweep.metric, METRICS)}",
            fix=f"choose one that `perpo eval` prints of this task ({advice.page('evaluation')})",
        )
    if tasks is None:
        return
    regions = (GROUNDING, *ANY_NUMBER, POINTING)
    named = {one for task in tasks for one in (regions if task == GROUNDING else (task,))}
    if sweep.metric is None and len(tasks) > 1:
        raise _names_none(tasks)
    if sweep.metric is not None:
        _check(sweep.metric, named, tasks)


def find_metric_of(sweep: SweepFile, prompts: Iterable[Version]) -> Metric:
    """The metric, given the prompts on which everything is measured; raises `ConfigError`."""
    tasks = {task for one in prompts for task in tasks_of(one.table(columns=QUESTION_COLUMNS))}
    if sweep.metric is not None:
        return _check(sweep.metric, tasks, sorted(tasks))
    mains = main_metrics([metric.name for metric in measured_metrics(tasks)])
    if len(mains) > 1:
        raise _names_none(sorted(tasks), mains)
    return METRICS[mains[0]]


def _check(name: str, tasks: Collection[str], shown: Collection[str]) -> Metric:
    """The metric, if prompts of these tasks have it and one direction is better."""
    metric = METRICS[name]
    measured = measured_metrics(tasks)
    if metric not in measured:
        why = metric.missing() if metric.of_answers is not None else None
        none = f"prompts of {' and '.join(shown)} have no {name}"
        usable = [
            one.name for one in measured if one.higher_is_better is not None and not one.only_if_any
        ]
        raise ConfigError(
            f"metric: {why or none}",
            fix=f"choose one of {', '.join(usable)}",
        )
    if metric.only_if_any:
        raise ConfigError(
            f"metric: {name} is left out where it is 0, so it cannot choose a setting",
            fix="name another metric",
        )
    if metric.higher_is_better is None:
        raise ConfigError(
            f"metric: neither a high nor a low {name} is better, so it cannot choose a setting",
            fix="name another metric",
        )
    return metric


def _names_none(tasks: Collection[str], mains: Collection[str] = ()) -> ConfigError:
    shown = f", such as {' or '.join(mains)}" if mains else ""
    return ConfigError(
        f"metric: the prompts have several tasks ({', '.join(tasks)}), and no metric is named",
        fix=f"name the one that decides{shown}",
    )
