"""`perpo report`: the artifacts of a run -> one HTML page and the paired comparisons."""

from collections.abc import Sequence
from shutil import get_terminal_size

from perpo_pipeline.config.evaluations import BASE
from perpo_pipeline.config.fingerprints import (
    STAGE_VERSIONS,
    counted_settings,
    report_facts,
)
from perpo_pipeline.evaluate.result_table import every_task, result_table
from perpo_pipeline.report.answered import read_answered
from perpo_pipeline.report.benchmarks import read_benchmarks
from perpo_pipeline.report.inputs import Inputs, SplitInputs, open_inputs
from perpo_pipeline.report.lineage import ancestors
from perpo_pipeline.report.methods import ReportedMethod, main_method, reported_methods
from perpo_pipeline.report.paired import Comparison, Outcomes, compare, read_outcomes
from perpo_pipeline.report.pictures import Picture, read_pictures
from perpo_pipeline.report.ranked import RankedList, read_ranked
from perpo_pipeline.report.results import read_results
from perpo_pipeline.report.sampled import oracle, read_sampled
from perpo_pipeline.report.stale import Stale, stale_parts
from perpo_pipeline.report.training_log import read_curves, read_trained
from perpo_pipeline.rewards.normalise import named_forms
from perpo_pipeline.run import DEFAULT, Run, make
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.atomic import write_atomically
from perpo_pipeline.store.writing import Recipe, Writer

STAGE_VERSION = STAGE_VERSIONS["report"]
PAGE = "report.html"
MOST_OTHERS = 6
"""Other methods whose answers stand beside an example of a page."""


def report(run: Run) -> Version:
    """Write `report.html` and the paired comparisons (REPORT rows) of a run.

    Raises `ArtifactError` naming an artifact that does not exist yet.
    """
    config = run.config
    inputs = open_inputs(run)
    found = {
        "run": config.run,
        "model": config.model.id,
        "out_of_domain": config.eval.out_of_domain,
        **report_facts(config),
    }
    stale = stale_parts(run, inputs)
    settings = counted_settings("report", config.report, found)
    if stale.lines:  # another page: it says what is stale
        settings["stale"] = list(stale.lines)
    recipe = Recipe("report", DEFAULT, "report", STAGE_VERSION, settings, inputs.by_name())

    def work(writer: Writer) -> None:
        outcomes = [read_outcomes(test_set) for test_set in inputs.test_sets]
        comparisons = [row for one in outcomes for row in _compare_all(run, one)]
        html = _page(run, inputs, outcomes, comparisons, stale)
        write_atomically(writer.path / PAGE, lambda sink: sink.write(html.encode()))
        writer.write_part(0, [comparison.row() for comparison in comparisons])

    version = make(run, recipe, work, out=run.out)
    run.say(
        result_table(
            [*inputs.metrics.values()],
            columns=get_terminal_size().columns,
            num_resamples=config.report.num_resamples,
        )
    )
    if (table := every_task([*inputs.metrics.values()], config.eval.out_of_domain)) is not None:
        run.say(table)
    return version


def _compare_all(run: Run, outcomes: Outcomes) -> list[Comparison]:
    methods = reported_methods(run.config)
    main = main_method(methods)
    if main is None:
        return []
    others = [method for method in methods if method is not main]
    return compare(outcomes, main, others, run.config.report.num_resamples)


def _page(
    run: Run,
    inputs: Inputs,
    outcomes: Sequence[Outcomes],
    comparisons: Sequence[Comparison],
    stale: Stale,
) -> str:
    from perpo_pipeline.report.page.contents import Contents, SplitResults
    from perpo_pipeline.report.page.render import render  # imports Matplotlib

    config = run.config
    main = main_method(reported_methods(config))
    sampled = read_sampled(inputs)
    tasks = set(outcomes[0].prompts["task"])
    of_test = [one for task, one in sampled.items() if task in tasks]
    lineage = ancestors(inputs.by_name().values())
    settings = {name: version.manifest["settings"] for name, version in inputs.adapters.items()}
    pictures, outcome_counts = _pictures(run, inputs.main, outcomes[0], main)
    forms = _normal_forms(inputs.main)
    return render(
        Contents(
            title=config.report.title,
            run_name=config.run,
            model_id=next((one.model for one in lineage if one.model), config.model.id),
            test_sets=[
                SplitResults(
                    test_set.is_out_of_domain,
                    one,
                    read_results(config, inputs, test_set.split),
                    [row for row in comparisons if row.split == test_set.split],
                )
                for test_set, one in zip(inputs.test_sets, outcomes, strict=True)
            ],
            answered=[row for test_set in inputs.test_sets for row in read_answered(test_set)],
            oracle=oracle(of_test, config.report.num_resamples),
            main=main,
            settings=settings,
            curves={name: read_curves(version) for name, version in inputs.adapters.items()},
            trained={
                name: read_trained(version, inputs.lists[name])
                for name, version in inputs.adapters.items()
            },
            sampled=sampled,
            sampled_split=inputs.sampled_prompts.variant,
            ranked=_ranked(run, inputs, main),
            pictures=pictures,
            outcome_counts=outcome_counts,
            lineage=lineage,
            benchmarks=read_benchmarks(run, inputs.benchmarks),
            benchmark_margin=config.report.benchmark_margin,
            normalised=named_forms(forms) if forms else None,
            any_space="whitespace" in forms,
            stale=stale,
        )
    )


def _normal_forms(test_set: SplitInputs) -> list[str]:
    """The normal forms of the compared texts."""
    settings = [version.manifest["settings"] for version in test_set.predictions.values()]
    return [form for one in settings for form in one.get("normalise", [])]


def _ranked(run: Run, inputs: Inputs, main: ReportedMethod | None) -> list[RankedList]:
    """Lists that the first seed of the main method was trained on."""
    if main is None:
        return []
    settings = inputs.adapters[main.variants[0]].manifest["settings"]
    return read_ranked(inputs, settings, run.config.report.lists)


def _pictures(
    run: Run, test_set: SplitInputs, outcomes: Outcomes, main: ReportedMethod | None
) -> tuple[list[Picture], dict[str, int]]:
    """Examples of the base and the main method's first seed; none if one of them is missing.

    Pages show the first seeds of MOST_OTHERS other methods as well.
    """
    wanted = run.config.report.pictures
    if not wanted or main is None or BASE not in outcomes.rewards:
        return [], {}
    methods = reported_methods(run.config)
    others = [m.variants[0] for m in methods if m.name != main.name and not m.is_base]
    shown = (BASE, main.variants[0])
    return read_pictures(test_set, outcomes, shown, wanted, others[:MOST_OTHERS])
