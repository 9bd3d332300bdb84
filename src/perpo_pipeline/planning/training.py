"""The training part of a plan: processes, lists, steps and memory of each method.

`perpo train --dry-run` prints it. With finished lists it reads those that training would read;
before they exist it plans for the number that is expected, with lengths of a sample of prompts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from types import MappingProxyType
from typing import Any

from perpo_pipeline.config.steps import count_steps
from perpo_pipeline.config.train import TrainSettings
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.machine import GIB
from perpo_pipeline.planning.amounts import count_splits, expect_lists
from perpo_pipeline.planning.hardware import Hardware, this_machine
from perpo_pipeline.planning.model import Model, look_at_model
from perpo_pipeline.planning.tokens import Answers, PromptTokens, count_tokens, expect_answers
from perpo_pipeline.run import Run
from perpo_pipeline.store.artifacts import CURRENT, MANIFEST
from perpo_pipeline.train.batches import list_rows
from perpo_pipeline.train.compilation import is_compiled
from perpo_pipeline.train.engine import choose_forward
from perpo_pipeline.train.forward import choose_forward_and_say
from perpo_pipeline.train.launch import Launch, command_line
from perpo_pipeline.train.lists import TrainingList, choose_completions, with_blank_images_of
from perpo_pipeline.train.memory import Estimate, Shape, estimate_memory, shape_of
from perpo_pipeline.train.plan import RankStep, make_sampler
from perpo_pipeline.train.scope import count_trained, make_trainable
from perpo_pipeline.train.shared_prefix import row_length
from perpo_pipeline.train.task import Task, check_batch_size, read_lists, task_of, uses_cuda
from perpo_pipeline.train.token_budget import Forward, Rows, are_in_one_row, forward_tokens, rows_of
from perpo_pipeline.train.zero import offloads, read_zero_config, zero_stage
from perpo_pipeline.vlm.loading import load_without_weights
from perpo_pipeline.vlm.models import Vlm

FITS = 0.9  # of a device's memory: the allocator's blocks and gaps need the rest
NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Epoch:
    """The steps of every process in the first epoch, and the rows of each list."""

    steps: Sequence[Sequence[RankStep]]
    rows: Sequence[Rows]
    in_one_row: bool

    def tokens(self, forward: Sequence[int]) -> int:
        """Tokens of one forward, padding included."""
        return forward_tokens([self.rows[i] for i in forward], in_one_row=self.in_one_row)

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each list in a forward by itself."""
        return [self.tokens([i]) for i in range(len(self.rows))]

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


@dataclass(frozen=True)
class Training:
    """One planned training: `lists` of them in an epoch, with the memory of each process."""

    variant: str
    settings: TrainSettings
    lists: int
    epoch: Epoch
    forward: Forward
    shape: Shape
    size: int
    on_gpu: bool
    answers: int  # of a list, at most

    @property
    def steps(self) -> int:
        """Optimiser steps of all epochs."""
        return count_steps(self.lists, self.settings)

    @property
    def is_compiled(self) -> bool:
        """Whether its first step compiles the decoder layers."""
        quantization = self.shape.quantization
        return is_compiled(
            self.settings, self.forward, on_cuda=self.on_gpu, quantization=quantization
        )

    def memory(self, changed: Mapping[str, Any] = NOTHING) -> Estimate:
        """Bytes in each process, with other settings: `changed` has values by their whole keys."""
        update = {key.removeprefix("train."): value for key, value in changed.items()}
        quantization = update.pop("model.quantization", self.shape.quantization)
        wanted = self.settings.model_copy(update=update)
        tokens = min(
            self.epoch.largest_forward,
            max(wanted.max_tokens_per_forward, max(self.epoch.lengths)),
        )
        if self.on_gpu and self.forward == "shared-prefix":
            tokens = row_length(tokens, wanted.row_lengths)
        shape = replace(self.shape, quantization=quantization)
        compiled = is_compiled(wanted, self.forward, on_cuda=self.on_gpu, quantization=quantization)
        shared = self.forward == "shared-prefix"
        answers = self.answers * max(1, round(tokens / fmean(self.epoch.lengths))) if shared else 0
        return _estimate(shape, wanted, tokens, self.size, compiled, answers)


def expect_training(
    variant: str,
    settings: TrainSettings,
    lists: int,
    model: Model,
    tokens: PromptTokens,
    answers: Answers,
    size: int,
    *,
    on_gpu: bool,
) -> Training | None:
    """Plan for `lists` lists as long as the sample's; None if the model's shape is unknown."""
    if model.shape is None:
        return None
    prompts = tokens.whole
    forward: Forward = "shared-prefix" if settings.forward != "separate" else "separate"
    if model.vlm is not None:
        forward = choose_forward(model.vlm, settings.forward)
    kind = settings.chosen_method.trains_on
    most = round(answers.tokens[1])
    if kind == "truth":
        longest = [max(tokens.truth, default=most)]
    else:
        longest = [most] * (2 if kind == "pair" else max(2, round(answers.distinct[1])))
    one = [rows_of(count, longest, forward) for count in prompts]
    if settings.chosen_method.blank_image:
        one = [own + rows_of(p, [most], forward) for own, p in zip(one, prompts, strict=True)]
    rows = [one[i % len(one)] for i in range(lists)]
    shape = _trained_shape(model.shape, settings, _count_trained(model, settings))
    epoch = plan_epoch(rows, settings, forward, size, on_gpu=on_gpu)
    return Training(
        variant,
        settings,
        lists,
        epoch,
        forward,
        shape,
        size,
        on_gpu=on_gpu,
        answers=len(longest),
    )


def plan_epoch(
    rows: Sequence[Rows],
    settings: TrainSettings,
    forward: Forward,
    size: int,
    *,
    on_gpu: bool,
    margins: Sequence[float] | None = None,
) -> Epoch:
    """The steps of `size` processes over lists with these rows; `margins`: see `make_sampler`."""
    in_one_row = are_in_one_row(forward, packs=on_gpu)
    sampler = make_sampler(
        rows, settings, in_one_row=in_one_row, rank=0, size=size, margins=margins
    )
    return Epoch(list(sampler.steps_of_all_ranks()), rows, in_one_row)


def _count_trained(model: Model, settings: TrainSettings) -> int:
    """The numbers that are trained; of a model that is not here, LoRA's by its shape."""
    if model.vlm is not None:
        policy = make_trainable(model.vlm, settings)
        found = count_trained(policy)
        if settings.tuning == "lora":
            policy.unload()
        policy.requires_grad_(False)
        return found
    shape = model.shape
    assert shape is not None
    if settings.tuning == "full":
        return shape.parameters
    return shape.lora_numbers(settings.lora.rank)


def _trained_shape(base: Shape, settings: TrainSettings, trained: int) -> Shape:
    rank = settings.lora.rank if settings.tuning == "lora" else 0
    return replace(base, trained=trained, rank=rank)


def remedies(training: Training, memory: float) -> list[tuple[str, Estimate]]:
    """Settings that lower the memory, each with what it then takes: from the mildest on, up to the
    first that fits into `memory` bytes."""
    found: list[tuple[str, Estimate]] = []
    for changed in _tries(training):
        shown = " ".join(
            f"{key}={str(value).lower() if isinstance(value, bool) else value}"
            for key, value in changed.items()
        )
        found.append((shown, training.memory(changed)))
        if found[-1][1].total <= FITS * memory:
            return found[-1:]
    return sorted(found, key=lambda one: one[1].total)[:1]


def _tries(training: Training) -> Iterator[dict[str, Any]]:
    """Settings by their keys: first those that change no result, and quantisation last."""
    longest = max(training.epoch.lengths)
    shorter: dict[str, Any] = {"train.max_tokens_per_forward": longest}
    half = max(longest, training.settings.max_tokens_per_forward // 2)
    again: dict[str, Any] = {"train.gradient_checkpointing": True}
    offload = {**again, "train.activation_offload": True}
    yield {"train.max_tokens_per_forward": half}
    yield shorter
    yield again
    yield {**again, **shorter}
    yield {**offload, **shorter}
    if training.size > 1 and training.settings.deepspeed is None:
        stages = ("zero2",) if training.shape.recurrent else ("zero2", "zero3")
        for stage in stages:
            yield {"train.deepspeed": stage, **again, **shorter}
    if training.settings.tuning == "lora" and training.shape.quantization is None:
        quantised: dict[str, Any] = {"model.quantization": "nf4"}
        yield quantised
        yield {**quantised, **shorter}
        yield {**quantised, **again, **shorter}
        yield {**quantised, **offload, **shorter}


def describe_training(
    run: Run, variant: str, launch: Launch | None, arguments: Sequence[str]
) -> str:
    """The resolved command, the numbers of lists and steps, and an estimate of the memory.

    Reads the preferences and the model's config, and loads no weights. Raises what training would
    raise for them. Without preferences it plans for the lists to expect.
    """
    size = launch.world_size if launch else 1
    check_batch_size(run.config.train.variants()[variant].batch_size, size)
    place = run.inputs.get("preferences", run.place("preferences", run.config.sample.split))
    if not (place / CURRENT).is_file() and not (place / MANIFEST).is_file():
        training, lists, notes = _expected(run, variant, size)
    else:
        training, lists, notes = _from_lists(run, variant, size)
    settings = training.settings
    given = [argument for argument in arguments if argument != "--dry-run"]
    lines = {
        "command": command_line(launch, given),
        "processes": _processes(launch),
        "lists": lists,
        "step": _step(training.epoch, settings, size),
        "steps": f"{len(training.epoch.steps) * settings.epochs:g} = "
        f"{len(training.epoch.steps)} per epoch "
        f"({training.lists} lists / {settings.batch_size}, rounded up) x "
        f"{settings.epochs:g} epochs",
        "memory": show_memory(training.memory()),
        "deepspeed": settings.deepspeed or "none: each process holds the whole model",
        **notes,
    }
    if not uses_cuda(run) and run.config.model.device != "cpu":
        lines["note"] = (
            "this machine has no GPU; on a GPU, dtype auto is bfloat16, and memory, forwards and "
            "folder differ"
        )
    width = max(map(len, lines))
    shown = "\n".join(f"  {name:<{width}}  {text}" for name, text in lines.items())
    return f"train {variant}, a dry run: nothing is started\n{shown}"


def _from_lists(run: Run, variant: str, size: int) -> tuple[Training, str, dict[str, str]]:
    """The training on the lists that `perpo filter` has kept."""
    task = task_of(run, variant, computes_here=False)
    settings = task.settings
    vlm = load_without_weights(task.resolved)
    forward = choose_forward_and_say(run, vlm, settings)
    found = read_lists(run, task, vlm)
    lists = choose_completions(found.lists, settings.chosen_method)
    lists = with_blank_images_of(lists, settings.chosen_method, vlm)
    epoch = _plan(run, task, vlm, lists, forward, size)
    dtype = task.model_settings["dtype"]
    base = shape_of(
        vlm,
        weight_bytes=4 if dtype == "float32" else 2,
        quantization=run.config.model.quantization,
    )
    shape = _trained_shape(base, settings, count_trained(make_trainable(vlm, settings)))
    described = (
        f"{len(lists)} of {task.preferences.path}, {forward}: {fmean(epoch.lengths):,.0f} "
        f"tokens on average, at most {max(epoch.lengths):,}" + _dropped(found.dropped)
    )
    place = task.recipe.place(run.out or run.place("adapter", variant))
    training = Training(
        variant,
        settings,
        len(lists),
        epoch,
        forward,
        shape,
        size,
        on_gpu=uses_cuda(run),
        answers=max((len(one.completions) for one in lists), default=0),
    )
    return training, described, {"writes": str(place)}


def _expected(run: Run, variant: str, size: int) -> tuple[Training, str, dict[str, str]]:
    """The training on lists that do not exist yet."""
    hardware = this_machine(run.config.model.device)
    model = look_at_model(run, half=is_half(run, hardware))
    (sampled,) = (s for s in count_splits(run) if s.name == run.config.sample.split)
    lists = expect_lists(run, sampled)
    tokens = count_tokens(run, model, sampled.rows)
    if not lists.high or tokens is None:
        raise ArtifactError(
            f"the lists to train on are {lists.how}"
            if not lists.high
            else f"the tokens of a prompt are unknown: {model.id} is not on this machine",
            where=str(run.place("preferences", run.config.sample.split)),
            fix="make the lists first, up to `perpo filter`",
        )
    answers = expect_answers(run, tokens)
    training = expect_training(
        variant,
        run.config.train.variants()[variant],
        lists.most_for(run.config.train.variants()[variant]),
        model,
        tokens,
        answers,
        size,
        on_gpu=hardware.is_gpu,
    )
    assert training is not None
    bound = "" if lists.known else "at most "
    epoch = training.epoch
    described = (
        f"{bound}{training.lists:,}, not made yet ({lists.how}), {training.forward}: at most "
        f"{fmean(epoch.lengths):,.0f} tokens on average ({tokens.how}; answers: {answers.how})"
    )
    return training, described, {}


def is_half(run: Run, hardware: Hardware) -> bool:
    """Whether the weights have two bytes each on this hardware."""
    dtype = run.config.model.dtype
    return dtype == "bfloat16" or (dtype == "auto" and hardware.is_gpu)


def _plan(
    run: Run, task: Task, vlm: Vlm, lists: Sequence[TrainingList], forward: Forward, size: int
) -> Epoch:
    rows = list_rows(vlm, lists, task.model_settings["preprocess"], forward)
    margins = [entry.margin for entry in lists]
    return plan_epoch(rows, task.settings, forward, size, on_gpu=uses_cuda(run), margins=margins)


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


def _estimate(
    shape: Shape,
    settings: TrainSettings,
    tokens: int,
    size: int,
    compiled: bool,
    answers: int,
) -> Estimate:
    zero = None if settings.deepspeed is None else read_zero_config(settings.deepspeed)
    return estimate_memory(
        shape,
        tokens,
        processes=size,
        zero_stage=zero_stage(zero),
        checkpointing=settings.gradient_checkpointing,
        activation_offload=settings.activation_offload,
        compiled=compiled,
        offload=zero is not None and offloads(zero),
        answers=answers,
    )


def show_memory(found: Estimate) -> str:
    """The estimate in GiB, by what holds it."""
    parts = {
        "weights": found.weights,
        "gradients": found.gradients,
        "optimiser": found.optimizer,
        "activations": found.activations,
        "logits": found.logits,
        "working": found.working,
        "context": found.context,
    }
    shown = ", ".join(f"{name} {size / GIB:.3g}" for name, size in parts.items())
    host = f"; {found.host / GIB:.3g} GiB of the machine's memory" if found.host else ""
    return (
        f"about {found.total / GIB:.3g} GiB in each process, computed: {shown}; the reference "
        f"before it {found.reference / GIB:.3g}{host}"
    )
