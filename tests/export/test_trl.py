"""TRL's own trainers read the exports as they are, and ask what our stages ask."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import prepare_synthetic, sample_synthetic, synthetic_config

from perpo_pipeline.export.export_run import Request, export
from perpo_pipeline.filter.filter_lists import filter_lists
from perpo_pipeline.run import Run
from perpo_pipeline.score.score_answers import score
from perpo_pipeline.vlm.inputs import encode_row, find_model
from perpo_pipeline.vlm.loading import load_without_weights
from perpo_pipeline.vlm.processors import load_processor

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("trl", "datasets")), reason="needs TRL"
)


def test_dpo_trainer_takes_two_steps_on_an_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForImageTextToText
    from trl import DPOConfig, DPOTrainer

    run = Run(synthetic_config(tmp_path / "data", num_prompts=12), quiet=True)
    prompts = prepare_synthetic(run, "train").table().to_pylist()
    sample_synthetic(run)
    score(run, "train")
    kept = filter_lists(run, "train").table().to_pylist()
    out = export(run, "train", tmp_path / "out", Request("trl"))
    dataset = load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert dataset["prompt_id"] == [row["prompt_id"] for row in kept]

    resolved, _ = find_model(run.config.model, run.config.run_dir)
    processor = load_processor(resolved.path)
    # TRL takes the begin token from the template; this model's tokenizer adds it.
    processor.chat_template = "{{ bos_token }}" + processor.chat_template
    model = AutoModelForImageTextToText.from_pretrained(resolved.path, dtype=torch.float32)
    arguments = DPOConfig(
        output_dir=str(tmp_path / "trl"),
        max_length=None,
        max_steps=2,
        per_device_train_batch_size=2,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
    )
    trainer = DPOTrainer(model, args=arguments, processing_class=processor, train_dataset=dataset)
    by_id = {row["prompt_id"]: row for row in prompts}
    _check_prompts(trainer, dataset, by_id, load_without_weights(resolved))
    before = model.lm_head.weight.detach().clone()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert trainer.state.global_step == 2 and len(losses) == 2
    assert not torch.equal(before, model.lm_head.weight)


def _check_prompts(trainer: Any, dataset: Any, by_id: dict[str, Any], vlm: Any) -> None:
    """Token by token, TRL asks the questions that our stages ask, and sees the same pixels."""
    import torch

    some = [dataset[index] for index in range(3)]
    batch = trainer.data_collator([dict(one) for one in some])
    for index, one in enumerate(some):
        ours = encode_row(vlm, by_id[one["prompt_id"]], "processor")
        asked = batch["attention_mask"][index].bool() & ~batch["completion_mask"][index].bool()
        assert batch["input_ids"][index][asked].tolist() == ours.input_ids.tolist()
        assert torch.equal(batch["pixel_values"][index], ours.tensors["pixel_values"][0])
