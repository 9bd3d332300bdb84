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

IGNORED = -100  # the label of tokens that are not learnt

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("trl", "datasets")), reason="needs TRL"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = Run(synthetic_config(tmp_path_factory.mktemp("run"), num_prompts=12), quiet=True)
    prepare_synthetic(made, "train")
    sample_synthetic(made)
    score(made, "train")
    filter_lists(made, "train")
    return made


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def exported(run: Run, to: str, folder: Path) -> Any:
    """An export as `datasets` reads it."""
    from datasets import load_dataset

    out = export(run, "train", folder / "out", Request(to))
    dataset = load_dataset(str(out), split="train", cache_dir=str(folder / "cache"))
    kept = run.latest("preferences", "train").table(columns=["prompt_id"])
    assert dataset["prompt_id"] == kept["prompt_id"].to_pylist()
    return dataset


def loaded(run: Run) -> tuple[Any, Any]:
    """The run's model and its processor, as TRL needs them."""
    import torch
    from transformers import AutoModelForImageTextToText

    resolved, _ = find_model(run.config.model, run.config.run_dir)
    processor = load_processor(resolved.path)
    # TRL takes the begin token from the template; this model's tokenizer adds it.
    processor.chat_template = "{{ bos_token }}" + processor.chat_template
    return AutoModelForImageTextToText.from_pretrained(
        resolved.path, dtype=torch.float32
    ), processor


def arguments(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "trl"),
        "max_length": None,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
    }


def test_dpo_trainer_takes_two_steps_on_an_export(run: Run, tmp_path: Path) -> None:
    import torch
    from trl import DPOConfig, DPOTrainer

    dataset = exported(run, "trl", tmp_path)
    model, processor = loaded(run)
    given = DPOConfig(**arguments(tmp_path))
    trainer = DPOTrainer(model, args=given, processing_class=processor, train_dataset=dataset)
    batch = _check_prompts(trainer, dataset, run, "completion_mask")
    assert batch["completion_mask"].any(1).all()
    before = model.lm_head.weight.detach().clone()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert trainer.state.global_step == 2 and len(losses) == 2
    assert not torch.equal(before, model.lm_head.weight)


def test_sft_trainer_learns_the_best_answers_of_an_export(run: Run, tmp_path: Path) -> None:
    from trl import SFTConfig, SFTTrainer

    dataset = exported(run, "sft", tmp_path)
    model, processor = loaded(run)
    given = SFTConfig(**arguments(tmp_path))
    trainer = SFTTrainer(model, args=given, processing_class=processor, train_dataset=dataset)
    batch = _check_prompts(trainer, dataset, run, "labels")
    for labels, one in zip(batch["labels"], dataset, strict=False):
        ((said,),) = [turn["content"] for turn in one["completion"]]
        learnt = processor.tokenizer.decode(labels[labels != IGNORED])
        assert learnt == said["text"] + processor.tokenizer.eos_token


def _check_prompts(trainer: Any, dataset: Any, run: Run, learnt: str) -> Any:
    """Token by token, TRL asks the questions that our stages ask, and sees the same pixels.

    `learnt` is the part of the returned batch that marks the answers.
    """
    import torch

    resolved, _ = find_model(run.config.model, run.config.run_dir)
    vlm = load_without_weights(resolved)
    by_id = {row["prompt_id"]: row for row in run.latest("prompts", "train").table().to_pylist()}
    some = [dataset[index] for index in range(3)]
    batch = trainer.data_collator([dict(one) for one in some])
    is_learnt = batch[learnt].bool() if learnt == "completion_mask" else batch[learnt] != IGNORED
    for index, one in enumerate(some):
        ours = encode_row(vlm, by_id[one["prompt_id"]], "processor")
        asked = batch["attention_mask"][index].bool() & ~is_learnt[index]
        assert batch["input_ids"][index][asked].tolist() == ours.input_ids.tolist()
        assert torch.equal(batch["pixel_values"][index], ours.tensors["pixel_values"][0])
    return batch
