"""All data that the page shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from perpo_pipeline.report.answered import Answered
from perpo_pipeline.report.benchmarks import Benchmark
from perpo_pipeline.report.lineage import Ancestor
from perpo_pipeline.report.methods import ReportedMethod
from perpo_pipeline.report.paired import Comparison, Outcomes
from perpo_pipeline.report.pictures import Picture
from perpo_pipeline.report.ranked import RankedList
from perpo_pipeline.report.results import MethodResults
from perpo_pipeline.report.sampled import Oracle, Sampled
from perpo_pipeline.report.stale import Stale
from perpo_pipeline.report.training_log import Floats, Trained

Json = dict[str, Any]


@dataclass(frozen=True)
class SplitResults:
    """The results on one split; `comparisons` are those of the main method with each other one."""

    is_out_of_domain: bool
    outcomes: Outcomes
    results: Sequence[MethodResults]
    comparisons: Sequence[Comparison]

    @property
    def split(self) -> str:
        """The name of the split."""
        return self.outcomes.split


@dataclass(frozen=True)
class Contents:
    """What was read from the run.

    The first of `test_sets` is the main one: the headline, the table of results, the paired
    comparison and the pictures are about it. `main` is the method of the headline. `settings` (as
    the adapter records them), `curves` and `trained` have one entry per trained variant;
    `outcome_counts` one per outcome of `pictures`. `ranked` are some of the lists that `main` was
    trained on. `normalised` is the sentence about normal forms of texts, if there are any;
    `any_space`: one of them makes all white space equal.
    """

    title: str
    run_name: str
    model_id: str
    test_sets: Sequence[SplitResults]
    answered: Sequence[Answered]
    oracle: Oracle | None
    main: ReportedMethod | None
    settings: Mapping[str, Json]
    curves: Mapping[str, Mapping[str, Floats]]
    trained: Mapping[str, Trained]
    sampled: Mapping[str, Sampled]
    sampled_split: str
    ranked: Sequence[RankedList]
    pictures: Sequence[Picture]
    outcome_counts: Mapping[str, int]
    lineage: Sequence[Ancestor]
    benchmarks: Sequence[Benchmark]
    benchmark_margin: float
    normalised: str | None = None
    any_space: bool = False
    stale: Stale = field(default_factory=Stale)

    @property
    def results(self) -> Sequence[MethodResults]:
        """The results on the main test set."""
        return self.test_sets[0].results

    @property
    def outcomes(self) -> Outcomes:
        """The prompts and rewards of the main test set."""
        return self.test_sets[0].outcomes

    @property
    def comparisons(self) -> Sequence[Comparison]:
        """The paired differences on the main test set."""
        return self.test_sets[0].comparisons
