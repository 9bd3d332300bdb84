"""All data that the page shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perpo_pipeline.config.train import TrainSettings
from perpo_pipeline.report.lineage import Ancestor
from perpo_pipeline.report.methods import ReportedMethod
from perpo_pipeline.report.paired import Comparison, Outcomes
from perpo_pipeline.report.pictures import Picture
from perpo_pipeline.report.results import Estimate, MethodResults
from perpo_pipeline.report.sampled import Sampled
from perpo_pipeline.report.training_log import Floats


@dataclass(frozen=True)
class Contents:
    """What was read from the run.

    `main` is the method of the headline. `settings`, `curves` and `train_s` (seconds) have one
    entry per trained variant; `outcome_counts` one per outcome of `pictures`.
    """

    title: str
    run_name: str
    model_id: str
    results: Sequence[MethodResults]
    oracle: Mapping[str, Estimate]
    main: ReportedMethod | None
    outcomes: Outcomes
    comparisons: Sequence[Comparison]
    settings: Mapping[str, TrainSettings]
    curves: Mapping[str, Mapping[str, Floats]]
    train_s: Mapping[str, float]
    sampled: Sampled
    sampled_split: str
    pictures: Sequence[Picture]
    outcome_counts: Mapping[str, int]
    lineage: Sequence[Ancestor]
