"""The whole page: every section's data, rendered by one template."""

from typing import Any

import jinja2
from markupsafe import Markup, escape

from perpo_pipeline.report.methods import BASE_COLOUR, BASE_LABEL
from perpo_pipeline.report.page.all_test_sets import all_test_sets
from perpo_pipeline.report.page.benchmarks import benchmarks_table
from perpo_pipeline.report.page.contents import Contents
from perpo_pipeline.report.page.headline import headline, headline_metric
from perpo_pipeline.report.page.paired import paired_panels
from perpo_pipeline.report.page.results import missing_answers, results_table
from perpo_pipeline.report.page.samples import samples
from perpo_pipeline.report.page.training import training
from perpo_pipeline.report.page.wording import duration

TRUTH_COLOUR = "#15803d"

Json = dict[str, Any]


def render(contents: Contents) -> str:
    """The whole page as HTML; everything except our own SVG is escaped."""
    return _template().render(
        c=contents,
        base_label=BASE_LABEL,
        facts=_facts(contents),
        headline=headline(contents),
        table=results_table(contents, headline_metric(contents.results)),
        missing=missing_answers(contents),
        test_sets=all_test_sets(contents),
        paired=paired_panels(contents),
        benchmarks=benchmarks_table(contents.benchmarks, contents.benchmark_margin),
        box_colours=_box_colours(contents),
        samples=samples(contents.sampled, contents.sampled_split),
        training=training(contents),
        lineage=_lineage(contents),
    )


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("perpo_pipeline.report", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["duration"] = duration
    environment.filters["breakable"] = _breakable
    return environment.get_template("page.html")


def _breakable(name: str) -> Markup:
    """A name at whose underscores a line may break."""
    return escape(name).replace("_", Markup("_<wbr>"))


def _facts(contents: Contents) -> Json:
    prompts = contents.outcomes.prompts
    return {
        "datasets": ", ".join(prompts["dataset"].unique().sort()),
        "split": ", ".join(prompts["split"].unique().sort()),
        "prompts": prompts.height,
        "images": prompts["image_sha256"].n_unique(),
    }


def _box_colours(contents: Contents) -> Json:
    """The colours of the boxes in the pictures: the truth's and both models'."""
    main = contents.main
    return {
        "truth": TRUTH_COLOUR,
        "before": BASE_COLOUR,
        "after": "" if main is None else main.colour,
    }


def _lineage(contents: Contents) -> Json:
    versions = contents.lineage
    packages = sorted({pair for version in versions for pair in version.packages})
    commits = sorted({v.git_commit for v in versions if v.git_commit})
    return {
        "total_s": sum(version.wall_s for version in versions),
        "packages": packages,
        "commits": commits,
    }
