"""Whole runs of a tiny hybrid and of a tiny model with windows: every stage, and the merge."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from perpo_pipeline import cli
from perpo_pipeline.store.artifacts import Version, open_version
from perpo_pipeline.vlm.decoding import greedy_decode
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.inputs import encode_row
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.models import Vlm
from perpo_pipeline.vlm.ways import plain_logprob

CONFIG = """
run: tiny
model: {{id: {model}, dtype: float32, device: cpu}}
prepare:
  train: {{source: testbed, task: ocr, num_prompts: 4}}
  test: {{source: testbed, task: ocr, num_prompts: 2}}
sample: {{num_samples: 4, temperature: 1.0, max_new_tokens: 12, batch_size: 2}}
score: {{reward: edit_similarity}}
filter: {{min_margin: 0.001}}
train: {{batch_size: 2, learning_rate: 1.0e-2, lora: {{rank: 2, alpha: 4}}, methods: {{perpo: }}}}
eval: {{max_new_tokens: 12, batch_size: 2, conditions: []}}
report: {{num_resamples: 100, pictures: 1}}
"""
WITH_STATE = {"in_proj_qkv", "in_proj_z", "out_proj"}  # what a gated delta net trains
EVERYWHERE = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
EXACT = 1e-4  # nats


def perpo(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments])
    assert not ended.value.code


def load(model: Path, adapter: Path | None = None) -> Vlm:
    return load_vlm(resolve_model(str(model)), dtype="float32", device="cpu", adapter=adapter)


def made(artifact: str) -> Version:
    return open_version(Path("data/tiny") / artifact)


@pytest.mark.parametrize(
    ("model", "trained"), [("tiny_qwen3_5", EVERYWHERE | WITH_STATE), ("tiny_gemma3", EVERYWHERE)]
)
def test_a_model_that_is_proven_at_the_start_goes_through_all_stages(
    model: str,
    trained: set[str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Random weights answer nonsense, some of it a little nearer to the page's text."""
    folder: Path = request.getfixturevalue(model)
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(CONFIG.format(model=folder))
    perpo("run", "--config", "tiny.yaml", "--quiet")
    adapter = made("adapter/perpo")
    merged = tmp_path / "merged"
    perpo("merge", "--adapter", str(adapter.path), "--out", str(merged))

    says_why()
    references_are_of_plain_forwards(load(folder))
    assert what_has_changed(adapter) == trained
    with_adapter = predictions_are_greedy(load(folder, adapter.path))
    assert predictions_are_greedy(load(merged)) == pytest.approx(with_adapter, abs=EXACT)
    assert made("report/default").manifest["rows"] > 0


def says_why() -> None:
    """Each manifest says how prompts were read, by the proof on the model's own weights."""
    proven = "it is exact on this model's own weights: shared prefix against separate forwards"
    for artifact in ("samples/train", "predictions/base@test", "predictions/perpo@test"):
        assert proven in made(artifact).manifest["notes"]["way"]
    forward = made("adapter/perpo").manifest["notes"]["forward"]
    assert forward.startswith("shared-prefix: exact on one list; gradients off by ")


def references_are_of_plain_forwards(base: Vlm) -> None:
    """Log-probabilities of sampling and of training are those of transformers' own forward."""
    prompts = {row["prompt_id"]: row for row in made("prompts/train").table().to_pylist()}
    drawn = {
        (row["prompt_id"], *row["completion_token_ids"]): row["sampler_logprob"]
        for row in made("samples/train").table().to_pylist()
    }
    references = made("reference/train").table().to_pylist()
    lists = made("preferences/train").table().to_pylist()
    assert len(lists) == len(prompts) and len(drawn) == 16
    for one, reference in zip(lists, references, strict=True):
        assert one["prompt_id"] == reference["prompt_id"]
        prompt = encode_row(base, prompts[one["prompt_id"]], "processor")
        for ids, ref in zip(one["completion_token_ids"], reference["ref_logps"], strict=True):
            plain = plain_logprob(base, prompt, ids)
            assert ref == pytest.approx(plain, abs=EXACT)
            assert drawn[(one["prompt_id"], *ids)] == pytest.approx(plain, abs=EXACT)


def what_has_changed(adapter: Version) -> set[str]:
    """The layers whose LoRA is no longer zero."""
    weights = load_file(adapter.path / "adapter_model.safetensors")
    return {key.split(".")[-3] for key, value in weights.items() if "lora_B" in key and value.any()}


def predictions_are_greedy(vlm: Vlm) -> list[float]:
    """This model answers as the trained one in `perpo eval`; its log-probabilities in nats."""
    rows = {row["prompt_id"]: row for row in made("prompts/test").table().to_pylist()}
    evaluated = made("predictions/perpo@test").table().to_pylist()
    prompts = [encode_row(vlm, rows[one["prompt_id"]], "processor") for one in evaluated]
    found = greedy_decode(vlm, prompts, max_new_tokens=12)
    assert [[*one.token_ids] for one in found] == [one["completion_token_ids"] for one in evaluated]
    return [one.sampler_logprob for one in found]
