"""`perpo doctor --model ID`: how a model would be sampled and trained, without a run."""

from pathlib import Path

import pytest
from tiny_untried import NARROW, save_untried

from perpo_pipeline import cli
from perpo_pipeline.doctor.model import examine_model


def test_an_untested_model_is_proven_and_described(tmp_path: Path) -> None:
    directory = save_untried("gemma3", tmp_path)
    lines = dict(
        line.split("  ", 1)
        for line in examine_model(str(directory), dtype="float32", device="cpu").splitlines()
    )
    found = {name.strip(): text.strip() for name, text in lines.items()}
    assert found["family"] == "gemma3, not among the tested"
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
