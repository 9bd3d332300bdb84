"""What `make check-cuda` reports; the compilation itself needs a CUDA build of torch."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from perpo_pipeline.config.levers import LEVERS
from tools.check_cuda import __main__ as command
from tools.check_cuda.cards import CARDS
from tools.check_cuda.graphs import Graph
from tools.check_cuda.layers import MODELS, Case, build, cases, two_lists

CASE = Case("llava-1.5-7b", "bfloat16", "any")


def graph(**kernels: list[int]) -> Graph:
    made = Graph(CASE, "forward")
    made.kernels.update(kernels)
    return made


def test_a_graph_must_fit_in_one_configuration_of_each_kernel() -> None:
    """227 KiB on an H100, 99 KiB on an RTX 4090 (CUDA C++ Programming Guide)."""
    large = graph(fused_flex_attention=[166_912], fused_norm=[300_000, 64])
    assert large.shared_memory == 166_912
    assert large.fault(CARDS["sm_90"]) == ""
    assert large.fault(CARDS["sm_89"]) == "too much shared memory"


def test_a_graph_without_flex_or_with_an_error_is_a_fault() -> None:
    assert graph().fault(CARDS["sm_90"]) == "no kernels were compiled"
    assert "Flex" in graph(fused_norm=[64]).fault(CARDS["sm_90"])
    assert Graph(CASE, "forward", error="boom").fault(CARDS["sm_90"]) == "boom"


def test_the_cases_are_every_layer_in_both_types_with_both_kinds_of_rows_and_with_levers() -> None:
    assert len({str(case) for case in cases()}) == len(MODELS) * (2 * 2 + 1)
    assert {name for case in cases() for name in case.levers} <= LEVERS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_the_layers_are_those_of_known_families(name: str) -> None:
    """Without their weights: the layers are as wide as real ones."""
    with torch.device("meta"):
        vlm = build(Case(name, "bfloat16", "any"))
    text = vlm.model.config.get_text_config()  # type: ignore[union-attr, operator]
    assert (text.num_hidden_layers, text.head_dim) == (1, 128)
    lists = two_lists(vlm)
    assert sum(entry.num_packed_tokens for entry in lists) == 2 * (700 + 20 * 25)


@pytest.mark.parametrize("graphs", [[graph(flex_attention=[64])], [graph()]])
def test_a_graph_that_would_not_run_gives_exit_code_1(
    graphs: list[Graph], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: Any = SimpleNamespace(compile=lambda _: graphs)
    monkeypatch.setattr(command, "make_compiler", lambda _: made)
    failed = not graphs[0].kernels
    assert command.compile_all("sm_90", [CASE]) == int(failed)
    shown = capsys.readouterr().out
    assert "llava-1.5-7b bfloat16 any" in shown
    assert ("1 graphs would not run" if failed else "all graphs compile and fit") in shown


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is a CUDA build")
def test_a_torch_for_the_cpu_is_named_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--card", "sm_90"]) == 2
    said = capsys.readouterr().err
    assert "is not a CUDA build" in said and "CUDA_VENV" in said


def test_words_that_no_case_has_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "missing_parts", lambda: "")
    assert command.main(["pixtral"]) == 2
    assert "no case has the words pixtral" in capsys.readouterr().err
