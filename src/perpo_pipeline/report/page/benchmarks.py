"""The table of general benchmarks, and one sentence that claims no more than it shows."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from perpo_pipeline.report.benchmarks import (
    BETTER,
    NOT_SHOWN,
    NOT_WORSE,
    WORSE,
    Benchmark,
)
from perpo_pipeline.report.page.wording import format_of
from perpo_pipeline.report.results import Estimate

Json = dict[str, Any]
JUDGED = (BETTER, NOT_WORSE, NOT_SHOWN, WORSE)
CLASSES = {BETTER: "improved", NOT_WORSE: "improved", WORSE: "worsened"}


def benchmarks_table(rows: Sequence[Benchmark], margin: float) -> Json | None:
    """The data of the section; None if the run has no benchmarks."""
    if not rows:
        return None
    return {
        "margin": f"{100 * margin:g}",
        "summary": summary(rows),
        "lower": sorted({row.metric for row in rows if row.higher_is_better is False}),
        "rows": [_row(row) for row in rows],
    }


def summary(rows: Sequence[Benchmark]) -> str:
    """How many of the numbers got which verdict."""
    counts = Counter(row.verdict if row.verdict in JUDGED else "not judged" for row in rows)
    named = [f"{counts[name]} {name}" for name in (*JUDGED, "not judged") if counts[name]]
    plural = "number" if len(rows) == 1 else "numbers"
    return f"Of {len(rows)} {plural}: {', '.join(named)}."


def _row(row: Benchmark) -> Json:
    how = format_of(row.metric)
    difference = row.difference
    return {
        "name": row.metric,
        "variant": row.variant,
        "harness": row.harness,
        "version": row.version,
        "base": _cell(row.metric, row.base),
        "after": _cell(row.metric, row.after),
        "difference": None
        if difference is None
        else {
            "value": how.signed(difference.value),
            "interval": how.interval(difference.low, difference.high, signed=True),
        },
        "n": row.base.n,
        "verdict": row.verdict,
        "kind": CLASSES.get(row.verdict, "unchanged"),
    }


def _cell(name: str, estimate: Estimate) -> Json:
    """Value and interval as text; no interval where the harness's log gives none."""
    how = format_of(name)
    known = estimate.low == estimate.low
    interval = how.interval(estimate.low, estimate.high) if known else ""
    return {"value": how.number(estimate.value), "interval": interval}
