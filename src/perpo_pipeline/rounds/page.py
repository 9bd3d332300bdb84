"""The page of the rounds: one HTML file without anything from elsewhere."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.evaluate.compare import p_text
from perpo_pipeline.evaluate.metric import Metric
from perpo_pipeline.evaluate.metrics import find_metric
from perpo_pipeline.report.methods import BASE_COLOUR
from perpo_pipeline.report.page.colours import INK
from perpo_pipeline.report.page.html import page_environment, with_colours
from perpo_pipeline.report.page.plots import PANEL_WIDTH
from perpo_pipeline.report.page.svg import draw_svg

Row = Mapping[str, Any]
Json = dict[str, Any]
ROUNDS_COLOUR, BESIDE_COLOUR = "#1d5fd1", "#b03a75"


def rounds_page(config: RunConfig, method: str, rows: Sequence[Row]) -> str:
    """The whole page; `rows` are those of the artifact."""
    metric = find_metric(rows[0]["metric"])
    rounds = config.rounds
    splits = [s for s in (rounds.report_on, rounds.select_on) if s is not None]
    last = max(row["round"] or 0 for row in rows)
    of_split = {split: [row for row in rows if row["split"] == split] for split in splits}
    ends = [r for r in of_split[rounds.select_on] if r["round"] and not r["gains"]]
    template = page_environment(Path(__file__).parent).get_template("rounds.html")
    text = template.render(
        run=config.run,
        method=method,
        rounds=rounds,
        made=last,
        chosen=next(row["name"] for row in rows if row["is_chosen"]),
        ended=ends[0]["name"] if ends and rounds.alpha is not None else None,
        metric=metric.label_with_unit,
        lower=metric.higher_is_better is False,
        splits=[
            {
                "name": split,
                "n": own[0]["n"],
                "svg": _plot(own, metric, split),
                "rows": [_shown(row, metric) for row in own],
            }
            for split, own in of_split.items()
        ],
        lineage=of_split[rounds.select_on],
    )
    return with_colours(text)


def _shown(row: Row, metric: Metric) -> Json:
    """A row as the table has it."""
    unit = metric.unit
    is_compared = row["against"] is not None
    return {
        "name": row["name"],
        "is_chosen": row["is_chosen"],
        "value": unit.number(row["value"]),
        "interval": f"[{unit.number(row['low'])}, {unit.number(row['high'])}]",
        "counts": row["adapter"] is not None,
        "prompts": row["num_prompts"],
        "samples": row["num_samples"],
        "lists": row["num_lists"],
        "against": row["against"],
        "difference": unit.signed(row["difference"]) if is_compared else "",
        "spread": f"[{unit.signed(row['difference_low'])}, {unit.signed(row['difference_high'])}]"
        if is_compared
        else "",
        "p": p_text(row["p_value"]) if is_compared else "",
    }


def _plot(rows: Sequence[Row], metric: Metric, split: str) -> str:
    """The metric after each round with its interval, and one round beside the last."""
    chain = [row for row in rows if row["round"] is not None]
    beside = [row for row in rows if row["round"] is None]
    last = chain[-1]["round"]
    scale = metric.unit.factor

    def draw(axes: Any) -> None:
        places = [row["round"] for row in chain]
        axes.plot(places, [scale * row["value"] for row in chain], color=ROUNDS_COLOUR, lw=1.8)
        for row in chain:
            colour = BASE_COLOUR if row["round"] == 0 else ROUNDS_COLOUR
            _point(axes, row["round"], row, colour, scale)
            if row["is_chosen"]:
                ring = {"color": INK, "markersize": 11, "fillstyle": "none"}
                axes.plot([row["round"]], [scale * row["value"]], "o", **ring)
        for row in beside:
            _point(axes, last + 0.25, row, BESIDE_COLOUR, scale)
        axes.set_xticks(places, [str(place) for place in places])
        axes.set(xlabel="rounds", ylabel=f"{metric.label_with_unit} on {split}")
        axes.margins(x=0.1, y=0.12)

    return draw_svg(draw, f"{metric.label} on {split} after each round", (PANEL_WIDTH, 2.8))


def _point(axes: Any, place: float, row: Row, colour: str, scale: float) -> None:
    axes.plot([place] * 2, [scale * row["low"], scale * row["high"]], color=colour, linewidth=2)
    axes.plot([place], [scale * row["value"]], "o", color=colour, markersize=6.5)
