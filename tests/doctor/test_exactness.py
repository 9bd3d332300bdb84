"""The check of shared prefix against separate rows, as rehearsed on the CPU."""

from dataclasses import replace

import pytest
import torch

from perpo_pipeline.doctor import exactness
from perpo_pipeline.doctor.exactness import Outcome, judge

# Dynamo looks at the gradient of a tensor between layers, which torch warns of.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


def test_shared_prefix_agrees_with_separate_rows_in_fp32() -> None:
    found = exactness.flex_float32("cpu")
    assert found.state == "ok", found.text
    figures = found.figures
    # Eight log-probabilities may be equal to the last bit; their gradients are not.
    assert figures["dlogp_nats"] < 1e-3 and 0 < figures["gradient_off"] < 1e-5


def test_compiled_layers_agree_and_another_length_adds_no_graph() -> None:
    found = exactness.compiled_layers("cpu")
    assert found.state == "ok", found.text
    assert found.figures["graphs"] >= 1 and found.figures["graphs_for_another_length"] == 0


def test_a_graph_for_each_length_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    original = exactness.compile_layers
    monkeypatch.setattr(
        exactness,
        "compile_layers",
        lambda model, _, **kwargs: original(model, "bucketed", **kwargs),
    )
    found = exactness.compiled_layers("cpu")
    assert found.state == "failed" and found.figures["graphs_for_another_length"] >= 1
    assert "row_lengths: bucketed" in str(found.fix)


def test_recomputed_activations_give_the_same() -> None:
    found = exactness.checkpointing("cpu")
    assert found.state == "ok", found.text


def outcomes() -> tuple[Outcome, Outcome, Outcome]:
    """Shared, plain and padded; padding changed logps by 0.1 nats and gradients by a tenth."""
    plain = Outcome(torch.tensor([[-100.0, -90.0]]), torch.tensor([3.0, 4.0]), 1.0, 1.0)
    padded = replace(plain, logps=plain.logps + 0.1, gradient=torch.tensor([3.5, 4.0]))
    return plain, plain, padded


def test_three_times_what_padding_changes_is_allowed_and_no_more() -> None:
    shared, plain, padded = outcomes()
    for logps, gradient, state in (
        (0.25, 1.4, "ok"),
        (0.35, 0.0, "failed"),
        (0.0, 1.6, "failed"),
        (float("nan"), 0.0, "failed"),
        (0.0, float("nan"), "failed"),
    ):
        one = replace(
            shared,
            logps=shared.logps + logps,
            gradient=shared.gradient + torch.tensor([gradient, 0.0]),
        )
        found = judge(one, plain, padded, torch.float32, 9)
        assert found.state == state, (logps, gradient, found.text)
        assert (found.fix is None) == (state == "ok")
