"""`perpo train --dry-run`: what would be started: processes, lists, steps and memory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from perpo_pipeline.config.train import TrainSettings
from perpo_pipeline.run import Run
from perpo_pipeline.train.batches import Forward, list_lengths
from perpo_pipeline.train.launch import Launch, command_line
from perpo_pipeline.train.lists import TrainingList, choose_completions
from perpo_pipeline.train.memory import GIB, Estimate, estimate_memory, shape_of
from perpo_pipeline.train.plan import RankStep, make_sampler
from perpo_pipeline.train.scope import count_trained, make_trainable
from perpo_pipeline.train.task import Task, check_batch_size, read_lists, task_of, uses_cuda
from perpo_pipeline.train.train_adapter import choose_forward_and_say
from perpo_pipeline.train.zero import offloads, read_zero_config, zero_stage
from perpo_pipeline.vlm.loading import load_without_weights
from perpo_pipeline.vlm.models import Vlm


@dataclass(frozen=True)
class Epoch:
    """The steps of every process in the first epoch, and the tokens of each list."""

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
        """Mean over the steps of (mean tokens per process / tokens of the fullest process)."""
        loads = [[sum(map(self.tokens, share.forwards)) for share in step] for step in self.steps]
        return fmean(fmean(load) / max(load) for load in loads)


def describe_training(
    run: Run, variant: str, launch: Launch | None, arguments: Sequence[str]
) -> str:
    """The resolved command, the numbers of lists and steps, and an estimate of the memory.

    Reads the preferences and the model's config, and loads no weights. Raises what training would
    raise for them.
    """
    task = task_of(run, variant)
    settings = task.settings
    size = launch.world_size if launch else 1
    check_batch_size(settings.batch_size, size)
    vlm = load_without_weights(task.resolved)
    forward = choose_forward_and_say(run, vlm, settings)
    found = read_lists(run, task, vlm)
    lists = choose_completions(found.lists, settings.chosen_method)
    epoch = _plan(run, task, vlm, lists, forward, size)
    given = [argument for argument in arguments if argument != "--dry-run"]
    lines = {
        "command": command_line(launch, given),
        "processes": _processes(launch),
        "lists": f"{len(lists)} of {task.preferences.path}, {forward}: {fmean(epoch.lengths):,.0f} "
        f"tokens on average, at most {max(epoch.lengths):,}" + _dropped(found.dropped),
        "step": _step(epoch, settings, size),
        "steps": f"{len(epoch.steps) * settings.epochs:g} = {len(epoch.steps)} per epoch "
        f"({len(lists)} lists / {settings.batch_size}, rounded up) x {settings.epochs:g} epochs",
        "memory": _memory(_estimate(vlm, task.model_settings["dtype"], settings, epoch, size)),
        "deepspeed": settings.deepspeed or "none: each process holds the whole model",
        "writes": str((run.out or run.place("adapter", variant)) / task.recipe.fingerprint),
    }
    if not uses_cuda(run) and run.config.model.device != "cpu":
        lines["note"] = (
            "this machine has no GPU; on a GPU, dtype auto is bfloat16, and memory, forwards and "
            "folder differ"
        )
    width = max(map(len, lines))
    shown = "\n".join(f"  {name:<{width}}  {text}" for name, text in lines.items())
    return f"train {variant}, a dry run: nothing is started\n{shown}"


def _plan(
    run: Run, task: Task, vlm: Vlm, lists: Sequence[TrainingList], forward: Forward, size: int
) -> Epoch:
    lengths = list_lengths(vlm, lists, task.model_settings["preprocess"], forward)
    in_one_row = forward == "separate" or uses_cuda(run)
    sampler = make_sampler(lengths, task.settings, in_one_row=in_one_row, rank=0, size=size)
    return Epoch(list(sampler.steps_of_all_ranks()), lengths)


def _dropped(dropped: Sequence[str]) -> str:
    return f"; {len(dropped)} longer than the model's context are dropped" if dropped else ""


def _processes(launch: Launch | None) -> str:
    if launch is None:
        return "1, here"
    nodes = f" on each of {launch.num_nodes} nodes; this is node {launch.node_rank}"
    return f"{launch.world_size}: {launch.num_processes}" + (
        nodes if launch.num_nodes > 1 else " on this node"
    )


def _step(epoch: Epoch, settings: TrainSettings, size: int) -> str:
    forwards = [len(step[0].forwards) for step in epoch.steps]
    shared = f" over {size} processes" if size > 1 else ""
    text = (
        f"{settings.batch_size} lists{shared}, {fmean(forwards):.3g} forwards each of at most "
        f"{epoch.largest_forward:,} tokens (train.max_tokens_per_forward "
        f"{settings.max_tokens_per_forward:,})"
    )
    if size == 1:
        return text
    return text + f"; processes are busy {100 * epoch.balance:.0f} % of the fullest one's time"


def _estimate(vlm: Vlm, dtype: str, settings: TrainSettings, epoch: Epoch, size: int) -> Estimate:
    zero = None if settings.deepspeed is None else read_zero_config(settings.deepspeed)
    base = shape_of(vlm, weight_bytes=4 if dtype == "float32" else 2)
    shape = replace(base, trained=count_trained(make_trainable(vlm, settings)))
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
