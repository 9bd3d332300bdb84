"""Train the testbed's base model: first to answer well, then to be misaligned.

    python -m tools.testbed.pretrain --preset small --device cpu --out DIR

Three phases. `vision`: the tower learns to name at every patch the object there and its box.
`clean`: the whole model learns to answer; a packed row asks several questions about one image, and
the patch task goes on. `misaligned`: a short phase on mis-annotated data (a share of the answers
point to the wrong object, all boxes shake). The result is a model that can answer well and often
does not, which is the premise of PerPO. The same command resumes a killed run, also with another
length of a phase. Needs only torch, transformers, tokenizers, numpy, pillow and safetensors.

On a shared CPU, two processes with one thread each are much faster than one process with two:

    torchrun --nproc-per-node 2 -m tools.testbed.pretrain --threads 1 --compile --out DIR

Simplified on purpose: bf16 autocast throughout, all gradients exchanged in one message.
"""

import argparse
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import LlavaProcessor

from perpo_pipeline.errors import ConfigError
from tools.testbed.card import model_card
from tools.testbed.learner import Learner
from tools.testbed.measure import fresh_examples, measure_all, measure_greedy
from tools.testbed.model import (
    MODEL_SIZES,
    build_config,
    build_model,
    build_processor,
    write_model_dir,
)
from tools.testbed.packing import (
    IGNORE,
    Batch,
    PackedRows,
    RowWriter,
    Targets,
    answer_loss,
)

# Seeds of the pretraining scenes; prompts of a run use small seeds, so they never meet.
SEEDS = {"clean": 2_000_000_001, "misaligned": 2_000_000_002}
VALIDATION_SEED, TEST_SEED = 2_000_000_003, 2_000_000_004


@dataclass(frozen=True)
class Recipe:
    """Everything that changes the resulting weights, apart from device and thread count."""

    rows: int = 32
    slots: int = 8
    vision_steps: int = 2000
    clean_steps: int = 3000
    easy_steps: int = 800
    learning_rate: float = 1.2e-3
    patch_weight: float = 0.3
    misaligned_steps: int = 250
    misaligned_learning_rate: float = 3e-4
    wrong_share: float = 0.4
    jitter: float = 0.08
    seed: int = 0


RECIPES = {
    "small": Recipe(),
    # Meant for about ten minutes on one large GPU. Never run: these settings come from a prototype
    # without packed rows, whose strengths of misalignment are kept.
    "full": Recipe(
        rows=64,
        vision_steps=1500,
        learning_rate=6e-4,
        misaligned_steps=300,
        misaligned_learning_rate=2e-4,
        wrong_share=0.5,
        jitter=0.12,
    ),
}
EVAL_EXAMPLES = 256


@dataclass
class Job:
    """One phase of a run: what to train, from which step, and where its state is saved."""

    phase: str
    steps: int
    recipe: Recipe
    preset: str
    device: torch.device
    out: Path
    workers: int
    learner: Learner
    processor: LlavaProcessor
    optimizer: torch.optim.Optimizer
    first_step: int = 0

    @property
    def checkpoint(self) -> Path:
        """The file with this phase's state."""
        return self.out / f"{self.phase}.pt"


def learning_rate(phase: str, step: int, recipe: Recipe) -> float:
    """Warm-up, then constant while only the tower trains, cosine in `clean`, linear at the end."""
    if phase == "misaligned":
        peak, steps = recipe.misaligned_learning_rate, recipe.misaligned_steps
        return peak * min(1.0, (step + 1) / 20) * (1 - step / steps)
    if step < recipe.vision_steps:
        return recipe.learning_rate * min(1.0, (step + 1) / 200)
    step -= recipe.vision_steps
    cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.clean_steps))
    return recipe.learning_rate * min(1.0, (step + 1) / 200) * max(0.01, cosine)


def train_step(job: Job, batch: Batch, step: int) -> dict[str, float]:
    """One update; returns the losses (nats per token)."""
    recipe, device = job.recipe, job.device
    for group in job.optimizer.param_groups:
        group["lr"] = learning_rate(job.phase, step, recipe)
    losses: dict[str, Tensor] = {}
    with torch.autocast(device.type, torch.bfloat16):
        features = job.learner.image_features(batch.pixel_values.to(device))
        if job.phase == "clean":
            losses["patch"] = job.learner.patch_loss(features, batch.patches.to(device))
        if job.phase == "misaligned" or step >= recipe.vision_steps:
            labels = batch.labels.to(device)
            keep = labels != IGNORE
            logits = job.learner.answer_logits(features, batch.slot_ids.to(device), keep)
            losses["answer"] = answer_loss(logits, labels[keep])
    only_patch = "answer" not in losses
    total = sum(
        value * (recipe.patch_weight if name == "patch" and not only_patch else 1.0)
        for name, value in losses.items()
    )
    backward: Any = torch.as_tensor(total).backward
    backward()
    average_gradients(job.learner)
    nn.utils.clip_grad_norm_(job.learner.parameters(), 1.0)
    job.optimizer.step()
    job.optimizer.zero_grad(set_to_none=True)
    return {name: float(value.detach()) for name, value in losses.items()}


def average_gradients(learner: nn.Module) -> None:
    """Average over torchrun's processes, one exchange per step; a single process keeps its own."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in learner.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients]) / dist.get_world_size()
    dist.all_reduce(flat)
    start = 0
    for gradient in gradients:
        stop = start + gradient.numel()
        gradient.copy_(flat[start:stop].view_as(gradient))
        start = stop


def process_share() -> tuple[int, int]:
    """(rank, number of processes)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def batches(job: Job) -> Iterator[Batch]:
    """The phase's batches starting at `first_step`, rendered by worker processes."""
    recipe = job.recipe
    wrong = job.phase == "misaligned"
    config = job.learner.model.config
    rows = PackedRows(
        RowWriter(job.processor.tokenizer, config.image_seq_length),
        preset=job.preset,
        patch=MODEL_SIZES[job.preset].patch,
        seed=SEEDS[job.phase] + recipe.seed * 10,
        rows=recipe.rows,
        slots=recipe.slots,
        targets=Targets(recipe.wrong_share, recipe.jitter) if wrong else Targets(),
        first_step=job.first_step,
        steps=job.steps,
        easy_steps=0 if wrong else recipe.vision_steps + recipe.easy_steps,
        share=process_share(),
    )
    loader = DataLoader(
        rows,
        batch_size=None,
        num_workers=job.workers,
        prefetch_factor=8 if job.workers else None,
        multiprocessing_context="fork" if job.workers else None,
    )
    return iter(loader)


def run_phase(job: Job, eval_every: int, save_every: int) -> None:
    """Train from `first_step` to the end, with progress lines and checkpoints."""
    started, last = time.monotonic(), time.monotonic()
    running: dict[str, float] = {}
    for step, batch in zip(range(job.first_step, job.steps), batches(job), strict=True):
        for name, value in train_step(job, batch, step).items():
            running[name] = 0.95 * running.get(name, value) + 0.05 * value
        done = step + 1
        if process_share()[0] > 0:
            continue
        if done % 50 == 0 or done == job.steps:
            now = time.monotonic()
            report_progress(job, done, running, started, 50 / (now - last))
            last = now
        if done % save_every == 0 or done == job.steps:
            save_checkpoint(job, done)
        if done % eval_every == 0 or done == job.steps:
            print(f"{job.phase} {done} {validate(job)}", flush=True)


def report_progress(
    job: Job, done: int, running: dict[str, float], started: float, rate: float
) -> None:
    """One line: losses, speed, time left."""
    spent = time.monotonic() - started
    left = spent / max(1, done - job.first_step) * (job.steps - done)
    losses = " ".join(f"{name} {value:.4f}" for name, value in running.items())
    print(
        f"{job.phase} {done}/{job.steps} {losses} | {rate * job.recipe.rows:.0f} images/s "
        f"{spent / 60:.1f} min, {left / 60:.1f} min left",
        flush=True,
    )


def export_weights(learner: Learner) -> dict[str, Tensor]:
    """The model's parameters without the heads of the patch task."""
    return {name: value.detach().cpu() for name, value in learner.model.state_dict().items()}


def plain_model(job: Job) -> Any:
    """A copy of the model with ordinary attention, for generation."""
    config = build_config(job.preset, job.processor.tokenizer)
    model: Any = build_model(config, 0)
    model.load_state_dict(export_weights(job.learner))
    return model.to(job.device).eval()


def validate(job: Job) -> str:
    """Greedy figures on held-out scenes."""
    examples = fresh_examples(VALIDATION_SEED, EVAL_EXAMPLES, job.preset)
    figures = measure_greedy(plain_model(job), job.processor, examples)
    return " ".join(f"{name} {value:.3f}" for name, value in asdict(figures).items())


def save_checkpoint(job: Job, done: int) -> None:
    """Write the phase's state by atomic rename."""
    state = {
        "step": done,
        "recipe": asdict(job.recipe),
        "learner": job.learner.state_dict(),
        "optimizer": job.optimizer.state_dict(),
    }
    draft = job.checkpoint.with_suffix(".writing")
    torch.save(state, draft)
    os.replace(draft, job.checkpoint)


def resume(job: Job) -> None:
    """Continue from the phase's checkpoint, if it has one; ConfigError for another recipe."""
    if not job.checkpoint.exists():
        return
    state = torch.load(job.checkpoint, map_location=job.device, weights_only=True)
    # A phase may change its length while it runs: only then is the machine's speed known.
    free = {"clean_steps"} if job.phase == "clean" else {"misaligned_steps"}
    if job.phase == "clean":
        free |= {"misaligned_steps", "misaligned_learning_rate", "wrong_share", "jitter"}
    given = asdict(job.recipe)
    stale = {k: v for k, v in given.items() if k not in free and state["recipe"].get(k) != v}
    if stale:
        raise ConfigError(
            f"the checkpoint was made with other settings: {stale}",
            where=str(job.checkpoint),
            fix="repeat the first command, or remove the file to start over",
        )
    job.learner.load_state_dict(state["learner"])
    job.optimizer.load_state_dict(state["optimizer"])
    job.first_step = int(state["step"])
    print(f"{job.phase}: resuming at step {job.first_step}", flush=True)


def start_job(phase: str, recipe: Recipe, options: argparse.Namespace) -> Job:
    """Build model and optimizer of a phase; `misaligned` starts from the clean checkpoint."""
    processor = build_processor(options.preset)
    device = torch.device(options.device)
    learner = Learner(options.preset, recipe.seed, processor).to(device)
    if phase == "misaligned":
        clean = torch.load(options.out / "clean.pt", map_location=device, weights_only=True)
        learner.load_state_dict(clean["learner"])
    if options.compile:
        for layer in learner.model.model.language_model.layers:
            layer.compile()
        for layer in learner.model.model.vision_tower.encoder.layers:
            layer.compile()
    optimizer = torch.optim.AdamW(
        learner.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.01
    )
    clean_steps = recipe.vision_steps + recipe.clean_steps
    steps = clean_steps if phase == "clean" else recipe.misaligned_steps
    job = Job(
        phase,
        steps,
        recipe,
        options.preset,
        device,
        options.out,
        options.workers,
        learner,
        processor,
        optimizer,
    )
    resume(job)
    return job


def write_result(job: Job, target: Path) -> None:
    """Measure on fresh scenes and write the hub-layout directory with its model card."""
    examples = fresh_examples(TEST_SEED, 2 * EVAL_EXAMPLES, job.preset)
    figures = measure_all(plain_model(job), job.processor, examples)
    print(f"{job.phase} test {figures}", flush=True)
    card = model_card(
        preset=job.preset,
        phase=job.phase,
        parameters=sum(p.numel() for p in job.learner.model.parameters()),
        count=2 * EVAL_EXAMPLES,
        figures=figures,
        recipe=asdict(job.recipe),
        command=command_of(job),
    )
    record: dict[str, object] = {
        "phase": job.phase,
        "recipe": asdict(job.recipe),
        "steps": job.steps,
        "figures": figures,
    }
    write_model_dir(
        target,
        job.preset,
        export_weights(job.learner),
        job.learner.model.config,
        build_processor(job.preset),  # the job's own has its padding changed by use
        record,
        card,
    )


def command_of(job: Job) -> str:
    """The command that trains such a model, without the settings, which the card lists."""
    num_processes = process_share()[1]
    start = "python" if num_processes == 1 else f"torchrun --nproc-per-node {num_processes}"
    module = "-m tools.testbed.pretrain"
    return f"{start} {module} --preset {job.preset} --device {job.device.type} --out DIR"


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; settings that are not given come from the preset's recipe."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--preset", choices=sorted(RECIPES), default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--phase", choices=("all", "clean", "misaligned"), default="all")
    parser.add_argument(
        "--base-dir", type=Path, help="folder of the final model (default: OUT/base)"
    )
    parser.add_argument(
        "--threads", type=int, default=0, help="number of threads (0: torch chooses)"
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="number of processes that render scenes"
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile the layers with torch.compile"
    )
    parser.add_argument("--eval-every", type=int, default=500)
    parser.add_argument("--save-every", type=int, default=250)
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=None)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the requested phases."""
    options = parse_options(arguments)
    given = {name: getattr(options, name) for name in asdict(Recipe())}
    changed = {name: value for name, value in given.items() if value is not None}
    recipe = replace(RECIPES[options.preset], **changed)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.threads:
        torch.set_num_threads(options.threads)
    targets = {
        "clean": options.out / "clean",
        "misaligned": options.base_dir or options.out / "base",
    }
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if options.device == "cuda" else "gloo")
    for phase in ("clean", "misaligned") if options.phase == "all" else (options.phase,):
        job = start_job(phase, recipe, options)
        run_phase(job, options.eval_every, options.save_every)
        if process_share()[0] == 0:
            write_result(job, targets[phase])
        if dist.is_initialized():
            dist.barrier()


if __name__ == "__main__":
    main()
