"""Which methods share the axes of a curve, and which settings have a column."""

from perpo_pipeline.config.methods import METHODS
from perpo_pipeline.report.methods import ReportedMethod
from perpo_pipeline.report.page.training import axes, columns_where_set


def reported(*names: str) -> list[ReportedMethod]:
    return [ReportedMethod(n, METHODS[n].label, METHODS[n].colour, n, (n,)) for n in names]


def titles(curve: str, *names: str) -> list[tuple[str, list[str]]]:
    return [(title, [m.name for m in shared]) for title, shared in axes(curve, reported(*names))]


def test_losses_of_another_size_have_their_own_axes() -> None:
    """A mean over pairs starts at log 2, the likelihood of an order of 20 at log 20! = 42."""
    assert titles("loss", "sft", "dpo", "mdpo", "pro", "list-mle", "infonca", "perpo") == [
        ("Loss (DPO, mDPO, PerPO)", ["dpo", "mdpo", "perpo"]),
        ("Loss (PRO, ListMLE)", ["pro", "list-mle"]),
        ("Loss (InfoNCA)", ["infonca"]),
        ("Loss (SFT, cross-entropy)", ["sft"]),
    ]


def test_losses_of_one_size_and_other_curves_share_their_axes() -> None:
    assert titles("loss", "dpo", "perpo") == [("Loss", ["dpo", "perpo"])]
    assert titles("loss", "sft") == [("Loss", ["sft"])]
    assert titles("learning_rate", "sft", "pro", "perpo") == [
        ("Learning rate", ["sft", "pro", "perpo"])
    ]


def test_settings_that_few_methods_have_get_a_column_where_one_is_recorded() -> None:
    assert columns_where_set([{"beta": 0.1}, {"beta": 0.2}]) == ([], [[], []])
    recorded = [{"beta": 1.0}, {"reward_temperature": 0.25}, {"order": "widest-first"}]
    titles, values = columns_where_set(recorded)
    assert titles == ["reward temperature", "order"]
    assert values == [["–", "–"], ["0.25", "–"], ["–", "widest-first"]]
