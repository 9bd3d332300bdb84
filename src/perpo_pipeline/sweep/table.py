"""The result of a sweep as text: every setting, and the differences of the chosen ones."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from perpo_pipeline import advice
from perpo_pipeline.evaluate.compare import p_text
from perpo_pipeline.evaluate.metric import Metric
from perpo_pipeline.evaluate.metrics import find_metric, lower_is_better
from perpo_pipeline.lines import aligned
from perpo_pipeline.sweep.cells import setting_words
from perpo_pipeline.sweep.results import LEVEL

Row = Mapping[str, Any]
ONE_SEED, NO_P_VALUE = "one seed: not claimed", "no p-value: not claimed"
CHOSEN_HERE = "chosen on these prompts: not claimed"


def sweep_table(rows: Sequence[Row], differences: Sequence[Row]) -> str:
    """The text of SWEEP rows and SEED_DIFFERENCES rows."""
    metric = find_metric(rows[0]["metric"])
    text = "\n".join([*_settings(rows, metric), *_notes(rows, metric)])
    if not differences:
        return text
    lines = "\n".join(_differences(differences, metric))
    return f"{text}\n\n{lines}"


def _settings(rows: Sequence[Row], metric: Metric) -> list[str]:
    """A line per setting, with a column per split."""
    splits = list(dict.fromkeys(row["split"] for row in rows))
    symbol = f", {metric.unit.symbol}" if metric.unit.symbol else ""
    lines = [["method", "setting", "", *(f"{metric.name}{symbol} on {split}" for split in splits)]]
    for method, setting in dict.fromkeys((row["method"], row["setting"]) for row in rows):
        own = [r for r in rows if (r["method"], r["setting"]) == (method, setting)]
        words = ", ".join(setting_words(json.loads(setting))) or "-"
        chosen = "chosen" if own[0]["is_selected"] else ""
        cells = [_estimate([r for r in own if r["split"] == split], metric) for split in splits]
        lines.append([method, words, chosen, *cells])
    return aligned(lines)


def _estimate(rows: Sequence[Row], metric: Metric) -> str:
    """The mean over seeds or the only value, its interval, and the values of the seeds."""
    if not rows:
        return ""
    summary, unit = rows[-1], metric.unit
    shown = f"{unit.number(summary['value'])} [{unit.number(summary['low'])}, "
    shown += f"{unit.number(summary['high'])}]"
    seeds = [unit.number(row["value"]) for row in rows[:-1]]
    return f"{shown}, seeds {' '.join(seeds)}" if seeds else shown


def _notes(rows: Sequence[Row], metric: Metric) -> list[str]:
    several = any(row["num_seeds"] > 1 for row in rows)
    mean = ", of the mean over seeds where there are several" if several else ""
    notes = [f"[ ]: 95 % interval over the prompts{mean}"]
    more = (seeds_note(rows), lower_is_better([metric.name]))
    return [*notes, *(note for note in more if note)]


def seeds_note(rows: Sequence[Row]) -> str | None:
    """Which seeds chose and which are reported; None where they are the same."""
    seeds: dict[str, list[int]] = {}  # by split: first the one that chooses
    for row in rows:
        own = seeds.setdefault(row["split"], [])
        own += [row["seed"]] if row["seed"] not in (None, *own) else []
    choosing, reported = next(iter(seeds.values())), [*seeds.values()][-1]
    if set(choosing) == set(reported):
        return None
    both = [seed for seed in reported if seed in choosing]
    role = (
        f"{_seeds(both)} chose, so {'its values' if len(both) == 1 else 'their values'} may be "
        f"somewhat too good ({advice.page('evidence')})"
        if both
        else "these have chosen nothing"
    )
    return f"chosen with {_seeds(choosing)}, reported with {_seeds(reported)}: {role}"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _differences(differences: Sequence[Row], metric: Metric) -> list[str]:
    about = (
        f"chosen settings on the same {differences[0]['n']:,} prompts; the interval and p count "
        f"prompts and seeds ({advice.page('evidence')})"
    )
    return [*aligned(difference_lines(differences, metric)), about]


def difference_lines(differences: Sequence[Row], metric: Metric) -> list[list[str]]:
    """The cells of a table of differences: a line of headings, then one per pair of methods."""
    lines = [
        [
            f"difference on {differences[0]['split']}",
            "points",
            "95 % interval",
            "p (Holm)",
            "claimed",
        ]
    ]
    unit = metric.unit
    for row in differences:
        interval = f"[{unit.signed(row['low'])}, {unit.signed(row['high'])}]"
        is_known = not math.isnan(row["p_adjusted"])
        lines.append(
            [
                f"{row['better']} - {row['worse']}",
                unit.signed(row["difference"]),
                interval if is_known else "-",
                p_text(row["p_adjusted"]) if is_known else "-",
                claim_words(row),
            ]
        )
    return lines


def claim_words(row: Row) -> str:
    """Whether a SEED_DIFFERENCES row is claimed; if it is not, and not for its p-value, why."""
    if math.isnan(row["p_adjusted"]):
        return ONE_SEED if 1 in (row["seeds_better"], row["seeds_worse"]) else NO_P_VALUE
    if row["is_claimed"]:
        return "yes"
    return CHOSEN_HERE if row["p_adjusted"] < LEVEL else "no"
