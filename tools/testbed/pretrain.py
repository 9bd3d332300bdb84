"""Train the testbed's base model: first to answer well, then to be misaligned.

    python -m tools.testbed.pretrain --preset small --device cpu --out DIR

One model learns both tasks, boxes in scenes and the text of pages, and every step holds some of
both. The phase `clean` begins with the tower alone (`vision_steps`): it learns to say at every
patch what is in it, the object and its box, or the characters and where they stand in the reading
order, and to say it in the language model's own words: what a patch shows lies close to the
embedding of its word. Then the whole model learns to answer: a row asks several questions about one
scene, each kind equally often, or holds one page's text. The tower's task goes on, a second head
points at the patch of the next character, and words learn to look at what they name. The phase
`misaligned` is short, on mis-annotated data (a share of the boxes surround the wrong object, all
boxes shake; lines of pages are skipped, swapped, repeated or read across columns, characters taken
for others). The result is a model that can answer well and often does not, which is the premise of
PerPO. The same command resumes a killed run. Needs only what the package itself needs.

On a shared CPU, two processes with one thread each are much faster than one process with two:

    torchrun --nproc-per-node 2 -m tools.testbed.pretrain --threads 1 --compile --out DIR

Simplified on purpose: bf16 autocast throughout, all gradients exchanged in one message.
"""

import argparse
import json
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
from tools.testbed.losses import part_losses
from tools.testbed.measure import measure_all, measure_greedy
from tools.testbed.model import build_config, build_model, build_processor, write_model_dir
from tools.testbed.recipe import (
    MISALIGNED_SETTINGS,
    PHASES,
    RECIPES,
    TEST_SEED,
    VALIDATION_SEED,
    Recipe,
    first_cooling_step,
    is_answering,
    loss_weights,
    phase_steps,
    rate_factor,
)
from tools.testbed.steps import StepBatch, Steps, kinds_of_rows

EVAL_EXAMPLES = 128


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
    speed_options: str  # those that change nothing but the speed, as they were given
    learner: Learner
    processor: LlavaProcessor
    optimizers: list[torch.optim.Optimizer]
    first_step: int = 0

    @property
    def checkpoint(self) -> Path:
        """The file with this phase's state."""
        return self.out / f"{self.phase}.pt"


def set_learning_rate(job: Job, step: int) -> None:
    """Of matrices and of the other parameters, whose rates keep their ratio."""
    recipe = job.recipe
    clean = job.phase == "clean"
    peak = recipe.learning_rate if clean else recipe.misaligned_learning_rate
    rate = peak * rate_factor(job.phase, step, recipe)
    ratio = recipe.plain_learning_rate / recipe.learning_rate
    for optimizer, share in zip(job.optimizers, (1.0, ratio), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * share


def train_step(job: Job, batch: StepBatch, step: int) -> dict[str, float]:
    """One update; returns the losses (nats per token)."""
    recipe, learner = job.recipe, job.learner
    set_learning_rate(job, step)
    answering, further = is_answering(job.phase, step, recipe), job.phase == "clean"
    losses: dict[str, Tensor] = {}
    with torch.autocast(job.device.type, torch.bfloat16):
        images = torch.cat([part.pixel_values for part in batch.parts]).to(job.device)
        counts = [len(part.pixel_values) for part in batch.parts]
        features = torch.split(learner.image_features(images), counts)
        for part, seen in zip(batch.parts, features, strict=True):
            losses |= part_losses(learner, part, seen, answering=answering, further=further)
    weights = loss_weights(job.phase, step, recipe)
    total = sum(value * weights.get(name, 1.0) for name, value in losses.items())
    backward: Any = torch.as_tensor(total).backward
    backward()
    average_gradients(learner)
    nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
    for optimizer in job.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
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


def batches(job: Job) -> Iterator[StepBatch]:
    """The phase's batches starting at `first_step`, rendered by worker processes."""
    tokenizer, image_tokens = job.processor.tokenizer, job.learner.image_tokens
    kinds = kinds_of_rows(job.phase, job.recipe, job.preset, tokenizer, image_tokens)
    steps = Steps(kinds, range(job.first_step, job.steps), process_share())
    loader = DataLoader(
        steps,
        batch_size=None,
        num_workers=job.workers,
        prefetch_factor=8 if job.workers else None,
        multiprocessing_context="fork" if job.workers else None,
    )
    return iter(loader)


def run_phase(job: Job, eval_every: int, save_every: int) -> None:
    """Train from `first_step` to the end, with progress lines and checkpoints."""
    started = time.monotonic()
    reported, reported_at = job.first_step, started
    running: dict[str, float] = {}
    for step, batch in zip(range(job.first_step, job.steps), batches(job), strict=True):
        for name, value in train_step(job, batch, step).items():
            running[name] = 0.95 * running.get(name, value) + 0.05 * value
        done = step + 1
        if process_share()[0] > 0:
            continue
        if done % 25 == 0 or done == job.steps:
            now = time.monotonic()
            rate = (done - reported) / (now - reported_at)
            report_progress(job, done, running, now - started, rate)
            reported, reported_at = done, now
        if done % save_every == 0 or done == job.steps:
            save_checkpoint(job, done)
        if done % eval_every == 0 or done == job.steps:
            print(f"{job.phase} {done} {validate(job)}", flush=True)


def report_progress(
    job: Job, done: int, running: dict[str, float], spent: float, rate: float
) -> None:
    """One line: losses, speed, time left; `spent` is in seconds, `rate` in steps per second."""
    left = spent / max(1, done - job.first_step) * (job.steps - done)
    losses = " ".join(f"{name} {value:.4f}" for name, value in running.items())
    images = rate * (job.recipe.scenes + job.recipe.pages)
    print(
        f"{job.phase} {done}/{job.steps} {losses} | {images:.0f} images/s "
        f"{spent / 60:.1f} min, {left / 60:.1f} min left",
        flush=True,
    )


def export_weights(learner: Learner) -> dict[str, Tensor]:
    """The model's parameters without the heads of the further tasks."""
    return {name: value.detach().cpu() for name, value in learner.model.state_dict().items()}


def plain_model(job: Job) -> Any:
    """A copy of the model with ordinary attention, for generation."""
    config = build_config(job.preset, job.processor.tokenizer)
    model: Any = build_model(config, 0)
    model.load_state_dict(export_weights(job.learner))
    return model.to(job.device).eval()


def validate(job: Job) -> str:
    """Greedy figures on held-out scenes and pages."""
    figures = measure_greedy(
        plain_model(job), job.processor, VALIDATION_SEED, EVAL_EXAMPLES, job.preset
    )
    return " ".join(f"{name} {value:.3f}" for name, value in figures.items())


def save_checkpoint(job: Job, done: int) -> None:
    """Write the phase's state by atomic rename."""
    state = {
        "step": done,
        "recipe": asdict(job.recipe),
        "learner": job.learner.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in job.optimizers],
    }
    draft = job.checkpoint.with_suffix(".writing")
    torch.save(state, draft)
    os.replace(draft, job.checkpoint)


def resume(job: Job) -> None:
    """Continue from the phase's checkpoint, if it has one; ConfigError for another recipe."""
    if not job.checkpoint.exists():
        return
    state = torch.load(job.checkpoint, map_location=job.device, weights_only=True)
    if stale := stale_settings(job, state["recipe"], state["step"]):
        now = asdict(job.recipe)
        others = (f"{name} {state['recipe'].get(name)}, now {now.get(name)}" for name in stale)
        raise ConfigError(
            f"the checkpoint was made with other settings: {'; '.join(others)}",
            where=str(job.checkpoint),
            fix="repeat the first command, or remove the file to start over",
        )
    job.learner.load_state_dict(state["learner"])
    for optimizer, kept in zip(job.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    job.first_step = int(state["step"])
    print(f"{job.phase}: resuming at step {job.first_step}", flush=True)


def stale_settings(job: Job, before: dict[str, Any], step: int) -> list[str]:
    """Names of settings that a checkpoint at `step` depends on and that were others `before`."""
    given = asdict(job.recipe)
    names = given.keys() | before.keys()
    changed = {name for name in names if given.get(name) != before.get(name)}
    if job.phase == "clean":
        changed -= MISALIGNED_SETTINGS
        if changed == {"clean_steps"}:
            lengths = (job.recipe, replace(job.recipe, clean_steps=before["clean_steps"]))
            if step <= min(first_cooling_step(one) for one in lengths):
                changed = set()  # so far the length of the phase has decided nothing
    return sorted(changed)


def start_job(phase: str, recipe: Recipe, options: argparse.Namespace) -> Job:
    """Build model and optimizer of a phase, which starts from the checkpoint of the one before."""
    processor = build_processor(options.preset)
    device = torch.device(options.device)
    learner = Learner(options.preset, recipe.seed, processor).to(device)
    if phase == "misaligned":
        load_clean(learner, options.out / "clean.pt", recipe)
    if options.compile:
        for layer in learner.model.model.language_model.layers:
            layer.compile()
        for layer in learner.model.model.vision_tower.encoder.layers:
            layer.compile()
    job = Job(
        phase,
        phase_steps(phase, recipe),
        recipe,
        options.preset,
        device,
        options.out,
        options.workers,
        (f"--threads {options.threads} " if options.threads else "")
        + ("--compile " if options.compile else ""),
        learner,
        processor,
        make_optimizers(learner),
    )
    resume(job)
    return job


def load_clean(learner: Learner, checkpoint: Path, recipe: Recipe) -> None:
    """The state at the end of the phase `clean`; ConfigError where that phase has not ended."""
    steps = phase_steps("clean", recipe)
    state: dict[str, Any] = {"step": 0}
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if state["step"] != steps:
        raise ConfigError(
            f"the phase misaligned starts where the phase clean ends, at step {steps}, but that "
            f"phase is at step {state['step']}",
            where=str(checkpoint),
            fix="run the same command with --phase all",
        )
    learner.load_state_dict(state["learner"])


def make_optimizers(learner: Learner) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of layers, which halves the examples needed; AdamW for the rest."""
    model = learner.model.model
    layers = [model.vision_tower.encoder, model.multi_modal_projector, model.language_model.layers]
    matrices = [p for part in layers for p in part.parameters() if p.ndim == 2]
    taken = {id(matrix) for matrix in matrices}
    rest = [p for p in learner.parameters() if id(p) not in taken]
    return [
        torch.optim.Muon(
            matrices, lr=0.0, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    ]


def write_result(job: Job, target: Path) -> None:
    """Measure on fresh scenes and write the hub-layout directory with its model card."""
    count = 2 * EVAL_EXAMPLES
    torch.set_num_threads(max(torch.get_num_threads(), process_share()[1]))  # the others wait
    figures = measure_all(plain_model(job), job.processor, TEST_SEED, count, job.preset)
    print(f"{job.phase} test {figures}", flush=True)
    clean = clean_figures(job)
    card = model_card(
        preset=job.preset,
        phase=job.phase,
        side=job.learner.model.config.vision_config.image_size,
        parameters=sum(p.numel() for p in job.learner.model.parameters()),
        count=count,
        figures=figures,
        clean=clean,
        recipe=asdict(job.recipe),
        command=command_of(job),
    )
    record: dict[str, object] = {
        "phase": job.phase,
        "recipe": asdict(job.recipe),
        "steps": job.steps,
        "figures": figures,
        **({"clean_figures": clean} if clean else {}),
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


def clean_figures(job: Job) -> dict[str, float] | None:
    """What the model of the phase before answered; None for that phase itself."""
    written = job.out / "clean" / "testbed.json"
    if job.phase != "misaligned" or not written.exists():
        return None
    return dict(json.loads(written.read_text())["figures"])


def command_of(job: Job) -> str:
    """The command that trains such a model, with the settings that are not the preset's."""
    num_processes = process_share()[1]
    start = "python" if num_processes == 1 else f"torchrun --nproc-per-node {num_processes}"
    options = f"--preset {job.preset} --device {job.device.type} {job.speed_options}"
    usual = asdict(RECIPES[job.preset])
    for name, value in asdict(job.recipe).items():
        if value != usual[name]:
            options += f"--{name.replace('_', '-')} {value} "
    return f"{start} -m tools.testbed.pretrain {options}--out DIR"


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; settings that are not given come from the preset's recipe."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--preset", choices=sorted(RECIPES), default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--phase", choices=("all", *PHASES), default="all")
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


def recipe_of(options: argparse.Namespace) -> Recipe:
    """The preset's recipe with the settings that were given."""
    given = {name: getattr(options, name) for name in asdict(Recipe())}
    changed = {name: value for name, value in given.items() if value is not None}
    return replace(RECIPES[options.preset], **changed)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the requested phases."""
    options = parse_options(arguments)
    recipe = recipe_of(options)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.threads:
        torch.set_num_threads(options.threads)
    targets = {
        "clean": options.out / "clean",
        "misaligned": options.base_dir or options.out / "base",
    }
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if options.device == "cuda" else "gloo")
    for phase in PHASES if options.phase == "all" else (options.phase,):
        job = start_job(phase, recipe, options)
        run_phase(job, options.eval_every, options.save_every)
        if process_share()[0] == 0:
            write_result(job, targets[phase])
        if dist.is_initialized():
            dist.barrier()


if __name__ == "__main__":
    main()
