"""`perpo doctor --model ID`: how a model would be sampled and trained, without a run."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_untried import NARROW, save_untried

from perpo_pipeline import cli
from perpo_pipeline.doctor.model import examine_model
from perpo_pipeline.vlm.families import FAMILIES, Family


@pytest.mark.parametrize(
    ("record", "tests"),
    [
        (FAMILIES["gemma3"], "gemma3, tested"),
        (None, "gemma3, not among the tested"),
        (
            replace(FAMILIES["gemma3"], own_processor=False),
            "gemma3, tested with images that were prepared without its own processor",
        ),
    ],
)
def test_a_model_with_windows_is_proven_and_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: Family | None, tests: str
) -> None:
    if record is None:
        monkeypatch.delitem(FAMILIES, "gemma3")
    else:
        monkeypatch.setitem(FAMILIES, "gemma3", record)
    directory = save_untried("gemma3", tmp_path)
    lines = dict(
        line.split("  ", 1)
        for line in examine_model(str(directory), dtype="float32", device="cpu").splitlines()
    )
    found = {name.strip(): text.strip() for name, text in lines.items()}
    assert found["family"] == tests
    assert found["text layers"] == (
        f"sliding_attention (the last {NARROW} tokens, images both ways) and "
        "full_attention (images both ways)"
    )
    assert found["a prompt is"].startswith(
        "read once for all its answers: it is exact on this model's own weights: shared prefix"
    )
    assert found["positions"] == "1 axis"
    assert found["boxes"] == "set model.box_format and model.box_frame"
    assert found["adapter"] == (
        "LoRA on 21 linear layers (down_proj 3, gate_proj 3, k_proj 3, o_proj 3, q_proj 3, "
        "up_proj 3, v_proj 3)"
    )


def test_a_tested_model_by_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", "--model", "testbed"])
    printed = capsys.readouterr().out
    assert not ended.value.code
    assert "family       llava, tested" in printed
    assert "read once for all its answers: tests of this family show it to be exact" in printed
    assert "boxes        llava, frame full" in printed


def test_a_model_and_a_gpu_are_two_checks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", "--model", "testbed", "--gpu"])
    assert ended.value.code == 2
    assert "--model and --gpu are two checks" in capsys.readouterr().err
