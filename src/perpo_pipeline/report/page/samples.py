"""The base model's samples: the best of n, the rewards, the margins of the lists."""

from collections.abc import Mapping
from itertools import cycle
from typing import Any

from markupsafe import Markup

from perpo_pipeline.config.by_task import in_words
from perpo_pipeline.report.methods import BASE_COLOUR
from perpo_pipeline.report.page import plots
from perpo_pipeline.report.page.wording import format_of
from perpo_pipeline.report.sampled import Sampled

DROP_REASONS = {
    "no_preference": "no difference in reward",
    "margin_too_small": "margin too small",
    "over_cap": "over the cap",
}
KEPT_COLOUR, UNPARSED_COLOUR = "#1d5fd1", "#d0601a"
DROPPED_COLOURS = ("#b9c0c9", "#8d97a3", "#dfe3e8", "#6f7985")

Json = dict[str, Any]


def samples(sampled: Mapping[str, Sampled], split: str) -> Json:
    """The data of the section; `split` is the name of the sampled split."""
    shapes = [one.rewards.shape for one in sampled.values()]
    return {
        "split": split,
        "lists": sum(lists for lists, _ in shapes),
        "size": max(size for _, size in shapes),
        "tasks": [
            {
                "name": task if len(sampled) > 1 else "",
                "lists": len(one.rewards),
                "unparsed": f"{100 * float((~one.parse_ok).mean()):.1f}",
                "kept": len(one.kept_margins),
                "min_margin": in_words(one.min_margin),
                "by_unparsed": one.kept_by_unparsed_only,
                **_best_of_n(one),
                **_rewards(one),
                **_margins(one),
            }
            for task, one in sampled.items()
        ],
    }


def _best_of_n(sampled: Sampled) -> Json:
    best, how = sampled.best_of_n(), format_of(sampled.metric.name)
    svg = plots.best_of_n_plot(
        best,
        y_label=how.directed,
        unit=how.unit,
        colour=BASE_COLOUR,
        name=f"{how.label} of the best of n samples",
    )
    return {
        "best_label": how.label,
        "best_first": how.number(float(best[0])),
        "best_last": how.number(float(best[-1])),
        "best_of_n": Markup(svg),
    }


def _rewards(sampled: Sampled) -> Json:
    rewards, parsed = sampled.rewards.ravel(), sampled.parse_ok.ravel()
    parts = [
        plots.Part("parsed", KEPT_COLOUR, rewards[parsed]),
        plots.Part("not parsed", UNPARSED_COLOUR, rewards[~parsed]),
    ]
    svg = plots.histogram(parts, x_label="reward", y_label="samples", name="Rewards of all samples")
    return {"reward_parts": parts, "rewards": Markup(svg)}


def _margins(sampled: Sampled) -> Json:
    parts = [plots.Part("kept", KEPT_COLOUR, sampled.kept_margins)] + [
        plots.Part(f"dropped: {DROP_REASONS.get(reason, reason)}", grey, margins)
        for (reason, margins), grey in zip(
            sampled.dropped_margins.items(), cycle(DROPPED_COLOURS), strict=False
        )
    ]
    svg = plots.histogram(
        parts,
        x_label="margin (largest reward − smallest)",
        y_label="lists",
        name="Margins of all lists",
        threshold=sampled.min_margin,
    )
    return {"margin_parts": parts, "margins": Markup(svg)}
