"""The whole page: every section's data, rendered by one template."""

from typing import Any

import jinja2
from markupsafe import Markup, escape

from perpo_pipeline.config.methods import METHODS
from perpo_pipeline.drawing.marks import BEFORE, TRUTH
from perpo_pipeline.evaluate.metrics import OCR
from perpo_pipeline.report.methods import BASE_LABEL
from perpo_pipeline.report.page.all_test_sets import all_test_sets
from perpo_pipeline.report.page.benchmarks import benchmarks_table
from perpo_pipeline.report.page.colours import reward_colour
from perpo_pipeline.report.page.contents import Contents
from perpo_pipeline.report.page.examples import example_counts, examples
from perpo_pipeline.report.page.glossary import Glossary
from perpo_pipeline.report.page.headline import headline, headline_metric
from perpo_pipeline.report.page.html import page_environment, with_colours
from perpo_pipeline.report.page.paired import paired_panels, paired_table
from perpo_pipeline.report.page.papers_table import papers_table
from perpo_pipeline.report.page.ranked import ranked_lists
from perpo_pipeline.report.page.results import missing_answers, results_table
from perpo_pipeline.report.page.samples import samples
from perpo_pipeline.report.page.slices import slice_tables
from perpo_pipeline.report.page.training import training
from perpo_pipeline.report.page.wording import duration

Json = dict[str, Any]


def render(contents: Contents) -> str:
    """The whole page as HTML; everything except our own SVG is escaped."""
    glossary = Glossary()
    metric = headline_metric(contents.results)
    data: Json = {
        "headline": headline(contents),
        "table": results_table(contents, metric),
        "missing": missing_answers(contents),
        "test_sets": all_test_sets(contents),
        "slices": slice_tables(contents),
        "paired": paired_panels(contents),
        "paired_table": paired_table(contents),
        "benchmarks": benchmarks_table(contents.benchmarks, contents.benchmark_margin),
        "examples": examples(contents),
        "ranked": ranked_lists(contents),
        "samples": samples(contents.sampled, contents.sampled_split),
        "training": training(contents),
        "lineage": _lineage(contents),
    }
    text = _template(glossary).render(
        c=contents,
        base_label=BASE_LABEL,
        facts=_facts(contents),
        sections=_sections(contents, data),
        papers_table=papers_table(contents.model_id, contents.outcomes.prompts["dataset"]),
        trained_on=contents.trained[contents.main.variants[0]] if contents.main else None,
        compares_lists=contents.main is not None and METHODS[contents.main.kind].needs_preferences,
        example_counts=example_counts(contents),
        is_page=contents.outcomes.task == OCR,
        box_colours=_box_colours(contents),
        scale=[reward_colour(step / 10) for step in range(11)],
        banner=contents.stale.lines,
        marks=contents.stale.sections,
        glossary=glossary,
        **data,
    )
    return with_colours(text)


def _sections(contents: Contents, data: Json) -> list[tuple[str, str]]:
    """The id and title of each section in the page's order."""
    learned = f"What {contents.main.label} learned from" if contents.main else ""
    titled = [
        ("headline", "Result", True),
        ("table", "Results by method", True),
        ("missing", "Missing answers", data["missing"]["rows"]),
        ("test-sets", "All test sets", data["test_sets"]),
        ("slices", "By slice", data["slices"]),
        ("images", "What the image adds", data["table"]["images"]),
        ("paired", "Paired comparison", data["paired"]),
        ("benchmarks", "Did anything else get worse?", data["benchmarks"]),
        ("pictures", "Before and after", data["examples"]),
        ("lists", learned, data["ranked"]),
        ("samples", "Samples of the base model", True),
        ("training", "Training", data["training"]["methods"]),
        ("lineage", "Lineage", True),
        ("glossary", "Glossary", True),
    ]
    return [(id, title) for id, title, is_there in titled if is_there]


def _template(glossary: Glossary) -> jinja2.Template:
    environment = page_environment()
    environment.filters["duration"] = duration
    environment.filters["capitalize_first"] = lambda text: text[:1].upper() + text[1:]
    environment.filters["breakable"] = _breakable
    environment.globals["term"] = glossary.term
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
        "truth": TRUTH.colour,
        "before": BEFORE.colour,
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
