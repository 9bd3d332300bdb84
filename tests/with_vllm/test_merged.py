"""vLLM serves the output of `perpo merge` unchanged: greedy answers equal transformers'."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_adapters import save_adapter_artifact
from tiny_models import noise_image
from transformers import AutoModelForImageTextToText, AutoProcessor
from with_vllm.hub_models import FAMILIES

from perpo_pipeline.cli import main
from perpo_pipeline.merge.folder import CARD
from perpo_pipeline.merge.merge_adapter import merge
from perpo_pipeline.store.artifacts import open_version
from perpo_pipeline.vlm.decoding import greedy_decode
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.inputs import encode_row, prompt_image
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.prompts import render_prompt

NUM_PROMPTS, MAX_NEW_TOKENS = 64, 32
CONFIG = f"""
run: r
model: {{id: testbed, dtype: float32, device: cpu}}
prepare:
  train: {{source: testbed, num_prompts: 48}}
  test: {{source: testbed, num_prompts: {NUM_PROMPTS}}}
sample: {{backend: transformers, num_samples: 8, temperature: 1.0, max_new_tokens: 24}}
filter: {{min_margin: 0.2}}
train:
  batch_size: 4
  learning_rate: 1.0e-3
  lora: {{rank: 8, alpha: 16}}
  methods: {{perpo: {{beta: 0.5}}}}
"""


def perpo(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--quiet"])
    assert not ended.value.code


def greedy_with_vllm(model: Path, rows: list[dict[str, Any]], texts: list[str]) -> list[Any]:
    """Token ids of each answer, with the settings of the model card only."""
    from vllm import LLM, SamplingParams

    engine = LLM(
        str(model),
        dtype="float32",
        generation_config="vllm",
        mm_processor_kwargs={"use_fast": False},
        enforce_eager=True,
        limit_mm_per_prompt={"image": 1},
    )
    prompts = [
        {"prompt": text, "multi_modal_data": {"image": prompt_image(row)}}
        for text, row in zip(texts, rows, strict=True)
    ]
    settings = SamplingParams(temperature=0.0, max_tokens=MAX_NEW_TOKENS)
    found = engine.generate(prompts, settings, use_tqdm=False)
    return [tuple(one.outputs[0].token_ids) for one in found]


def test_greedy_answers_of_the_merged_testbed_model_equal_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(CONFIG)
    for stage in ("prepare", "sample", "score", "filter", "train"):
        perpo(stage, "--config", "r.yaml")
    perpo("merge", "--adapter", "data/r/adapter/perpo", "--out", "merged")
    rows = open_version(Path("data/r/prompts/test")).table().to_pylist()
    adapter = open_version(Path("data/r/adapter/perpo")).path

    def greedy(adapter: Path | None) -> list[tuple[int, ...]]:
        vlm = load_vlm(resolve_model("testbed"), dtype="float32", device="cpu", adapter=adapter)
        encoded = [encode_row(vlm, row, "processor") for row in rows]
        answers = greedy_decode(vlm, encoded, max_new_tokens=MAX_NEW_TOKENS)
        return [answer.token_ids for answer in answers]

    expected = greedy(adapter)
    vlm = load_vlm(resolve_model("merged"), dtype="float32", device="cpu")
    texts = [render_prompt(vlm, row["prompt"]) for row in rows]
    assert greedy_with_vllm(Path("merged"), rows, texts) == expected
    changed = sum(one != other for one, other in zip(greedy(None), expected, strict=True))
    assert changed > NUM_PROMPTS / 10, "the adapter is in the answers"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lines_of_the_card_load_every_family(
    family: str,
    hub_model: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Runs here because most families' processors need torchvision."""
    monkeypatch.chdir(tmp_path)
    model = hub_model(family)
    merge(save_adapter_artifact(model, tmp_path / "adapter"), tmp_path / "merged")
    noise_image(3, 80, 60).save("photo.png")
    (block,) = re.findall(r"```python\n(.*?)```", (tmp_path / "merged" / CARD).read_text(), re.S)
    block = block.replace("FOLDER or the id of this repository", "merged")
    places: dict[str, Any] = {}
    exec(block.replace("photo.jpg", "photo.png"), places)  # noqa: S102
    capsys.readouterr()
    made, base = AutoModelForImageTextToText, AutoProcessor
    assert isinstance(places["processor"], type(base.from_pretrained(model)))
    other = made.from_pretrained(model).eval()
    with torch.inference_mode():
        ours, theirs = (m(**places["inputs"]).logits for m in (places["model"], other))
    assert ours.shape == theirs.shape and (ours - theirs).abs().max() > 1e-2
