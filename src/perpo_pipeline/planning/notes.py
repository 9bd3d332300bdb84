"""What the reader of a plan has to know beside its figures."""

import os
from collections.abc import Sequence

from perpo_pipeline.advice import command, page
from perpo_pipeline.config.steps import lists_for
from perpo_pipeline.machine import cores
from perpo_pipeline.planning.amounts import Lists, Row
from perpo_pipeline.planning.hardware import Hardware
from perpo_pipeline.planning.model import Model
from perpo_pipeline.planning.tokens import PromptTokens
from perpo_pipeline.run import Run
from perpo_pipeline.train.zero import read_zero_config, zero_stage
from perpo_pipeline.vlm.inputs import context_length

BUSY = 0.75  # of the cores


def notes_of(
    run: Run, hardware: Hardware, model: Model, lists: Lists, tokens: PromptTokens | None
) -> list[str]:
    """The notes below the plan, none if there is nothing to say."""
    notes = _busy() if hardware.here else []
    notes += _too_long(run, model, tokens)
    notes += _not_sharded(run, model)
    if "rounds" in run.config.model_fields_set:
        notes.append(
            "this is the plan of one run of all stages, without the rounds of the file; theirs: "
            f"{command('iterate', '--dry-run')}"
        )
    if hardware.count > 1:
        notes.append(
            f"all {hardware.count} devices work: set sample.num_gpus and eval.num_gpus to "
            f"{hardware.count}, and give `perpo train` --num-processes {hardware.count}"
        )
    trainings = run.config.train.variants().values()
    needed = max(lists_for(50, settings) for settings in trainings)
    if lists.high is not None and lists.high < needed:
        bound = "" if lists.known else "at most "
        notes.append(
            f"{bound}{lists.high:,} lists are too few: 50 optimiser steps need about {needed:,} "
            f"({page('choosing')})"
        )
    if model.shape is None:
        notes.append(
            f"{model.id} is not on this machine and not among the models whose shape is known: "
            f"`hf download {model.id} --exclude '*.safetensors'` fetches all but its weights, and "
            "then tokens and memory are known"
        )
    elif model.vlm is None:
        tokens_are = "unknown" if tokens is None else "published figures"
        notes.append(
            f"{model.id} is not on this machine, so tokens are {tokens_are}: "
            f"`hf download {model.id} --exclude '*.safetensors'` fetches all but its weights"
        )
    return notes


def note_of_tasks(rows: Sequence[Row]) -> list[str]:
    """That times are for a mix of tasks, where there are several."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    if len(tasks) < 2:
        return []
    return [
        f"the prompts have the tasks {' and '.join(tasks)}, and each stage has one time, a mean in "
        "which each task counts the same: what works on one task alone takes less or more than "
        "that (pages have longer answers than boxes)"
    ]


def _too_long(run: Run, model: Model, tokens: PromptTokens | None) -> list[str]:
    """Whether prompts leave too little of the model's context for the longest answer."""
    limit = None if model.vlm is None else context_length(model.vlm)
    if limit is None or tokens is None:
        return []
    answer = run.config.sample.longest()
    number = sum(count + answer > limit for count in tokens.whole)
    if not number:
        return []
    return [
        f"{number} of {len(tokens.whole)} prompts exceed the model's context of {limit:,} tokens "
        f"with an answer of sample.max_new_tokens {answer:,}: lists that do so are left out"
    ]


def _not_sharded(run: Run, model: Model) -> list[str]:
    """That ZeRO-3 will refuse the model, where a training asks for it."""
    recurrent = () if model.vlm is None else model.vlm.layers.recurrent
    if not recurrent:
        return []
    found = [
        f"ZeRO-3 cannot shard {model.id}, which has layers with a recurrent state "
        f"({', '.join(recurrent)}), so `perpo train --method {name}` will refuse "
        f"train.deepspeed {settings.deepspeed}: set it to zero2, or leave it out"
        for name, settings in run.config.train.variants().items()
        if settings.deepspeed is not None and zero_stage(read_zero_config(settings.deepspeed)) == 3
    ]
    return found


def _busy() -> list[str]:
    """Whether other work slows what is measured now."""
    load, number = os.getloadavg()[0], cores()
    if load < BUSY * number:
        return []
    return [
        f"this machine is busy (a load of {load:.1f} on {number} cores): times that are measured "
        "now reach from those of a quiet machine to those of one as busy as now"
    ]
