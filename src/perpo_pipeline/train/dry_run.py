"""`perpo train --dry-run`: what would be started, on how many lists, in how much memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from perpo_pipeline.config.train import TrainSettings
from perpo_pipeline.run import Run
from perpo_pipeline.train.engine import choose_forward
from perpo_pipeline.train.launch import Launch, command_line
from perpo_pipeline.train.lists import (
    Forward,
    TrainingList,
    best_against_worst,
    ground_truth_list,
    planned_tokens,
    ranked_lists,
)
from perpo_pipeline.train.memory import GIB, Estimate, estimate_memory, shape_of
from perpo_pipeline.train.plan import RankStep, epoch_order, plan_step
from perpo_pipeline.train.train_adapter import (
    check_batch_size,
    rows_and_prompts,
    task_of,
    uses_cuda,
)
from perpo_pipeline.train.zero import offloads, read_zero_config, zero_stage
from perpo_pipeline.vlm.inputs import count_row_tokens
from perpo_pipeline.vlm.loading import load_front
from perpo_pipeline.vlm.models import Vlm


@dataclass(frozen=True)
class Epoch:
    """The steps of the first epoch, of every process, and the tokens of each list."""

    steps: Sequence[Sequence[RankStep]]
    lengths: Sequence[int]

    def tokens(self, forward: Sequence[int]) -> int:
        """Tokens of one forward."""
        return sum(self.lengths[i] for i in forward)

    @property
    def largest_forward(self) -> int:
        """Tokens of the largest forward of any process."""
        forwards = (f for step in self.steps for share in step for f in share.forwards)
        return max(self.tokens(forward) for forward in forwards)

    @property
    def balance(self) -> float:
        """Mean over the steps of (mean tokens of a process / tokens of the fullest one)."""
        loads = [[sum(map(self.tokens, share.forwards)) for share in step] for step in self.steps]
        return fmean(fmean(load) / max(load) for load in loads)


def describe_training(
    run: Run, variant: str, launch: Launch | None, arguments: Sequence[str]
) -> str:
    """The resolved command, the arithmetic of batch and steps, and an estimate of the memory.

    Reads the preferences and the model's config, and loads no weights.
    """
    task = task_of(run, variant)
    settings = task.settings
    size = launch.world_size if launch else 1
    check_batch_size(settings.batch_size, size)
    vlm = load_front(task.resolved)
    forward = choose_forward(vlm, settings.forward)
    lists = ranked_lists(*rows_and_prompts(task.preferences, task.prompts))
    epoch = _plan(run, vlm, lists, settings, forward, size)
    given = [argument for argument in arguments if argument != "--dry-run"]
    lines = {
        "command": command_line(launch, given),
        "processes": _processes(launch),
        "lists": f"{len(lists)} of {task.preferences.path}, {forward}: {fmean(epoch.lengths):,.0f} "
        f"tokens on average, {max(epoch.lengths):,} the longest",
        "step": _step(epoch, settings, size),
        "steps": f"{len(epoch.steps) * settings.epochs:g} = {len(epoch.steps)} an epoch "
        f"({len(lists)} lists / {settings.batch_size}, rounded up) x {settings.epochs:g} epochs",
        "memory": _memory(_estimate(vlm, task.model_settings["dtype"], settings, epoch, size)),
        "deepspeed": settings.deepspeed or "none: each process holds the whole model",
        "writes": str((run.out or run.place("adapter", variant)) / task.recipe.fingerprint),
    }
    if not uses_cuda(run) and run.config.model.device != "cpu":
        lines["note"] = (
            "this machine has no GPU: on one, dtype auto is bfloat16, and memory, "
            "forwards and folder are others"
        )
    width = max(map(len, lines))
    shown = "\n".join(f"  {name:<{width}}  {text}" for name, text in lines.items())
    return f"train {variant}, a dry run: nothing is started\n{shown}"


def _plan(
    run: Run,
    vlm: Vlm,
    lists: Sequence[TrainingList],
    settings: TrainSettings,
    forward: Forward,
    size: int,
) -> Epoch:
    preprocess = run.config.model.preprocess
    if not settings.chosen_method.needs_preferences:
        lists = [ground_truth_list(entry, vlm, run.config.model) for entry in lists]
    elif settings.chosen_method.trains_on == "pair":
        lists = [best_against_worst(entry) for entry in lists]
    lengths = [
        planned_tokens(entry, count_row_tokens(vlm, entry.prompt, preprocess), forward)
        for entry in run.progress(lists, "lengths")
    ]
    order = epoch_order(len(lists), settings.seed, 0)
    batches = [
        order[i : i + settings.batch_size] for i in range(0, len(order), settings.batch_size)
    ]
    in_one_row = forward == "concatenated" or uses_cuda(run)
    steps = [
        plan_step(
            batch,
            [lengths[i] for i in batch],
            size,
            settings.max_tokens_per_step,
            in_one_row=in_one_row,
        )
        for batch in batches
    ]
    return Epoch(steps, lengths)


def _processes(launch: Launch | None) -> str:
    if launch is None:
        return "1, here"
    nodes = f" on each of {launch.num_nodes} nodes, of which this is {launch.node_rank}"
    return f"{launch.world_size}: {launch.num_processes}" + (
        nodes if launch.num_nodes > 1 else " on this node"
    )


def _step(epoch: Epoch, settings: TrainSettings, size: int) -> str:
    forwards = [len(step[0].forwards) for step in epoch.steps]
    shared = f" over {size} processes" if size > 1 else ""
    text = (
        f"{settings.batch_size} lists{shared}, {fmean(forwards):.3g} forwards each of at most "
        f"{epoch.largest_forward:,} tokens (train.max_tokens_per_step "
        f"{settings.max_tokens_per_step:,})"
    )
    if size == 1:
        return text
    return text + f"; processes are busy {100 * epoch.balance:.0f} % of the fullest one's time"


def _estimate(vlm: Vlm, dtype: str, settings: TrainSettings, epoch: Epoch, size: int) -> Estimate:
    zero = None if settings.deepspeed is None else read_zero_config(settings.deepspeed)
    shape = shape_of(vlm, settings, weight_bytes=4 if dtype == "float32" else 2)
    return estimate_memory(
        shape,
        epoch.largest_forward,
        processes=size,
        zero_stage=zero_stage(zero),
        checkpointing=settings.gradient_checkpointing,
        offload=zero is not None and offloads(zero),
    )


def _memory(found: Estimate) -> str:
    parts = {
        "weights": found.weights,
        "gradients": found.gradients,
        "optimiser": found.optimizer,
        "activations": found.activations,
        "logits": found.logits,
    }
    shown = ", ".join(f"{name} {size / GIB:.3g}" for name, size in parts.items())
    return f"about {found.total / GIB:.3g} GiB in each process, computed: {shown}"
