"""The opponents as TRL documents them: GRPOTrainer, DPOTrainer, and SFTTrainer on best answers.

TRL's defaults stand except where a comment says why not. On this CPU: fp32, no vLLM, no gradient
checkpointing, which would only cost them time (ours has none either).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from figures import save

from online.apart import processor_seconds, run_apart
from online.ours import POINTS, make_lists, part_of, read
from online.plan import Plan, Setting, Way
from online.trl_data import (
    CHECKED,
    asked,
    best_answers,
    check_prompts,
    pairs,
    prompt_rows,
    reward_of,
)
from perpo_pipeline.config.run import RunConfig

EPOCHS = 3  # as TRL's trainers have by default
LISTS_PER_STEP = 8  # ours, and TRL's default


def train(plan: Plan, way: Way, setting: str, limit_s: float) -> list[dict[str, Any]]:
    """Train one setting until `limit_s` processor seconds are used; its points, from disk if there.

    Each point is {cpu_s, samples, steps, adapter}; they lie at the plan's marks of the time.
    """
    folder = plan.out / "ways" / setting
    before = make_lists(part_of(plan)) if way.needs_lists else {"cpu_s": 0.0, "samples": 0}
    if way.needs_lists and (paid := before["cpu_s"]) >= limit_s:
        raise SystemExit(
            f"--max-seconds {limit_s:g} leaves no time for {way.label}: its lists took {paid:,.0f} "
            "processor seconds; give more"
        )
    if not (folder / POINTS).is_file():
        log = plan.out / "logs" / f"{setting}.log"
        run_apart(log, train_here, plan, plan.load(), way, setting, limit_s, before)
    return list(read(folder / POINTS))


def train_here(
    plan: Plan, config: RunConfig, way: Way, setting: str, limit_s: float, before: dict[str, Any]
) -> None:
    """In the other process; `before` is what the lists have cost."""
    from perpo_pipeline.vlm.adapters import describe_base, write_record

    folder = plan.out / "ways" / setting
    clock = Clock(before["cpu_s"], limit_s, plan.marks)
    trainer, vlm = _trainer(plan, config, way, way.settings[setting])
    per_step = int(way.settings[setting].get("completions_per_step", 0))
    points: list[dict[str, Any]] = []

    def keep(cpu_s: float, steps: int) -> None:
        place = folder / f"step-{steps}"
        trainer.model.save_pretrained(str(place))
        write_record(place, describe_base(vlm))
        drawn, adapter = before["samples"] + steps * per_step, str(place.relative_to(plan.out))
        points.append({"cpu_s": cpu_s, "samples": drawn, "steps": steps, "adapter": adapter})

    clock.attach(trainer, keep)
    trainer.train()
    save(folder / "log.json", trainer.state.log_history)
    save(folder / POINTS, points)


class Clock:
    """Counts processor seconds from `start_s`; ends the training at the limit.

    It also lowers the learning rate: linearly to 0, as TRL does by default, over the time or the
    steps, whichever is used up first.
    """

    def __init__(self, start_s: float, limit_s: float, marks: Sequence[float]) -> None:
        self.start_s, self.limit_s, self.marks = start_s, limit_s, list(marks)

    def used(self) -> float:
        return self.start_s + processor_seconds()

    def share(self) -> float:
        """Of the way's own time."""
        return (self.used() - self.start_s) / max(self.limit_s - self.start_s, 1e-9)

    def passes(self, share: float) -> bool:
        """Whether `share` has reached marks that were not reached before; it takes them off."""
        reached = [mark for mark in self.marks if share >= mark]
        self.marks = self.marks[len(reached) :]
        return bool(reached)

    def attach(self, trainer: Any, keep: Any) -> None:
        """Set the schedule of a trainer, and call `keep(cpu_s, steps)` at each mark."""
        from torch.optim.lr_scheduler import LambdaLR
        from transformers import TrainerCallback

        clock = self

        class AtMarks(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                share = clock.share()
                is_last = share >= 1 or state.global_step >= state.max_steps
                if clock.passes(2.0 if is_last else share):
                    keep(clock.used(), state.global_step)
                control.should_training_stop = is_last

        def left(step: int) -> float:
            return max(0.0, 1 - max(clock.share(), step / max(1, trainer.state.max_steps)))

        trainer.add_callback(AtMarks())
        trainer.create_optimizer()
        trainer.lr_scheduler = LambdaLR(trainer.optimizer, left)


def _trainer(plan: Plan, config: Any, way: Way, setting: Setting) -> tuple[Any, Any]:
    """A trainer of TRL around the base model, and our description of that model."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForImageTextToText

    from perpo_pipeline.train.scope import lora_config
    from perpo_pipeline.vlm.inputs import find_model
    from perpo_pipeline.vlm.loading import load_without_weights

    torch.manual_seed(config.seed)
    resolved, _ = find_model(config.model, config.run_dir)
    vlm = load_without_weights(resolved)
    model = AutoModelForImageTextToText.from_pretrained(resolved.path, dtype=torch.float32)
    lora = config.train.shared.lora
    shared: dict[str, Any] = {
        "output_dir": str(plan.out / "logs" / "trl"),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": config.seed,
        "max_steps": plan.max_steps,
        "learning_rate": setting["learning_rate"],
    }
    made = {"grpo": _grpo, "trl-dpo": _dpo, "rft": _rft}[way.name](plan, config, setting, shared)
    trainer = made.pop("trainer")(
        model,
        processing_class=_processor(resolved.path),
        train_dataset=Dataset.from_list(made.pop("rows")),
        peft_config=lora_config(vlm, lora.rank, lora.alpha, config.train.shared.scope),
        **made,
    )
    _check(trainer, vlm, config, way)
    return trainer, vlm


def _processor(path: Path) -> Any:
    """The model's processor, with the begin token in its chat template.

    TRL's collators of DPO and SFT take all special tokens from the template, and this model's
    tokenizer adds the begin token after it: without this they would train on prompts that no
    other way reads.
    """
    from perpo_pipeline.vlm.processors import load_processor

    processor = load_processor(path)
    processor.chat_template = "{{ bos_token }}" + processor.chat_template
    return processor


def _grpo(plan: Plan, config: Any, setting: Setting, shared: dict[str, Any]) -> dict[str, Any]:
    from trl import GRPOConfig, GRPOTrainer

    in_all = int(setting["completions_per_step"])
    forward = min(in_all, plan.completions_per_forward)
    arguments = GRPOConfig(
        **shared,
        # One call generates for the whole step; its gradient is summed over smaller batches, which
        # stay in the cores' cache.
        per_device_train_batch_size=forward,
        gradient_accumulation_steps=in_all // forward,
        num_generations=int(setting["num_generations"]),
        temperature=setting["temperature"],
        max_completion_length=config.sample.max_new_tokens,
        num_train_epochs=1_000,  # the time limit ends it
    )
    rows = [asked(row) for row in prompt_rows(config)]
    reward = reward_of(config)
    return {"trainer": GRPOTrainer, "args": arguments, "rows": rows, "reward_funcs": [reward]}


def _dpo(plan: Plan, config: Any, setting: Setting, shared: dict[str, Any]) -> dict[str, Any]:
    from trl import DPOConfig, DPOTrainer

    arguments = DPOConfig(
        **shared,
        max_length=None,  # as TRL documents it for models with images
        beta=setting["beta"],
        per_device_train_batch_size=LISTS_PER_STEP,
        num_train_epochs=EPOCHS,
    )
    return {"trainer": DPOTrainer, "args": arguments, "rows": pairs(config)}


def _rft(plan: Plan, config: Any, setting: Setting, shared: dict[str, Any]) -> dict[str, Any]:
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        **shared,
        max_length=None,  # as TRL documents it for models with images
        per_device_train_batch_size=LISTS_PER_STEP,
        num_train_epochs=EPOCHS,
    )
    return {"trainer": SFTTrainer, "args": arguments, "rows": best_answers(config)}


def _check(trainer: Any, vlm: Any, config: Any, way: Way) -> None:
    """Raise AssertionError unless the trainer reads the prompts as our stages do."""
    from trl.data_utils import prepare_multimodal_messages

    by_id = {row["prompt_id"]: row for row in prompt_rows(config)}
    some = [
        trainer.train_dataset[index] for index in range(min(CHECKED, len(trainer.train_dataset)))
    ]
    rows = [by_id[one["prompt_id"]] for one in some]
    if way.name == "grpo":
        messages = [
            prepare_multimodal_messages(one["prompt"], images=[one["image"]]) for one in some
        ]
        ids: Sequence[Any] = trainer._tokenize_prompts(messages)[0]
    else:
        batch = trainer.data_collator([dict(one) for one in some])
        ids = [_prompt_of(batch, index) for index in range(len(some))]
    check_prompts(vlm, rows, ids, config.model.preprocess)


def _prompt_of(batch: Any, index: int) -> list[int]:
    """Token ids of a row up to its completion, without padding."""
    is_answer = batch["completion_mask"] if "completion_mask" in batch else batch["labels"] != -100
    is_prompt = batch["attention_mask"][index].bool() & ~is_answer[index].bool()
    ids: list[int] = batch["input_ids"][index][is_prompt].tolist()
    return ids


LOGGED = {"grpo": "reward", "trl-dpo": "rewards/accuracies", "rft": "loss"}


def learned(plan: Plan, way: Way, setting: str) -> str:
    """What the trainer logged over its steps: the means of the first and of the last fifth."""
    log = read(plan.out / "ways" / setting / "log.json")
    values = [float(entry[LOGGED[way.name]]) for entry in log if LOGGED[way.name] in entry]
    some = max(1, len(values) // 5)
    first, last = sum(values[:some]) / some, sum(values[-some:]) / some
    return f"{LOGGED[way.name]} {first:.3f} -> {last:.3f} in {len(values)} steps"
