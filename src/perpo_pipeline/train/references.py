"""The reference log-probabilities of a training: of the trained model, or of another one.

Another model (`train.reference_model`) is loaded first, alone, and released before the trained one
is loaded, so that a card never holds both.
"""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from perpo_pipeline.errors import InputError
from perpo_pipeline.run import Run
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.finding import version_of
from perpo_pipeline.train.earlier_lists import check_reference_reads
from perpo_pipeline.train.forward import check_forward, prove_forward
from perpo_pipeline.train.lists import choose_completions, with_blank_images_of, with_reference
from perpo_pipeline.train.task import Task, TaskLists, read_lists
from perpo_pipeline.vlm.inputs import IDENTITY_CACHE, open_model

if TYPE_CHECKING:
    from perpo_pipeline.train.lists import TrainingList
    from perpo_pipeline.train.processes import World
    from perpo_pipeline.train.token_budget import Forward
    from perpo_pipeline.train.zero import ZeroConfig
    from perpo_pipeline.vlm.models import Vlm

OWN, BLANK = "", "blank"  # the images that the lists are read behind

Logps = Mapping[str, Sequence[float]]
References = Mapping[str, Logps]
"""By image (`OWN`, `BLANK`) and prompt_id, the log-probability of each completion, in nats."""


def make_references(
    run: Run,
    vlm: "Vlm",
    task: Task,
    found: TaskLists,
    forward: "Forward",
    world: "World",
) -> References:
    """The log-probabilities under `vlm` that the task's method needs; none for one that trains on
    the truth.

    They cover whole lists of all tasks, whatever the method needs of them.
    """
    method = task.settings.chosen_method
    if not method.needs_preferences:
        return {}
    made = {OWN: _of_lists(run, vlm, task, found.of_all_tasks, forward, world, OWN)}
    if method.blank_image:
        every = choose_completions(found.of_all_tasks, method)
        blank = [one.negative for one in with_blank_images_of(every, method, vlm) if one.negative]
        made[BLANK] = _of_lists(run, vlm, task, blank, forward, world, BLANK)
    return made


def with_references(
    vlm: "Vlm", task: Task, found: TaskLists, references: References
) -> "list[TrainingList]":
    """The lists with their reference log-probabilities, of each what the method needs."""
    method = task.settings.chosen_method
    if not method.needs_preferences:
        return found.lists
    lists = choose_completions(with_reference(found.lists, references[OWN]), method)
    if not method.blank_image:
        return lists
    return with_blank_images_of(lists, method, vlm, references[BLANK])


def lists_that_both_read(run: Run, found: TaskLists, references: References) -> TaskLists:
    """The lists without those that are too long for the model of `references`.

    `train.drop_too_long` leaves these out, of which there are none without it. Raises InputError if
    no list is left.
    """
    known = references.get(OWN, {})
    missing = [p for one in found.of_all_tasks if (p := one.prompt["prompt_id"]) not in known]
    if not missing:
        return found
    lists = [one for one in found.lists if one.prompt["prompt_id"] in known]
    if not lists:
        raise InputError(
            "every list is too long for train.reference_model",
            fix="name a reference model with a longer context, or lower sample.max_new_tokens",
        )
    run.say(
        f"train: dropped {len(missing)} lists that are too long for train.reference_model, though "
        "not for the trained model"
    )
    return replace(
        found,
        lists=lists,
        of_all_tasks=[one for one in found.of_all_tasks if one.prompt["prompt_id"] in known],
        dropped=[*found.dropped, *missing],
    )


def references_of_another_model(
    run: Run, task: Task, world: "World", zero: "ZeroConfig | None"
) -> References | None:
    """Those of `train.reference_model`; None where the trained model is the reference.

    Every process calls it. Loads the model unless its log-probabilities are all there; nothing of
    it is left in memory afterwards. Raises InputError for a model that reads other texts in the
    completions' token ids, and as training does for its own model.
    """
    from perpo_pipeline.vlm.loading import load_without_weights

    if task.reference is None:
        return None
    other = task.of_reference()
    light = load_without_weights(other.resolved, identity_cache=run.scratch / IDENTITY_CACHE)
    check_reference_reads(light, task.preferences)
    try:
        found = read_lists(run, other, light)
    except InputError as error:
        what = f"train.reference_model: {error.what}"
        raise InputError(what, where=error.where, fix=error.fix) from error
    forward = _known_forward(light, other)
    is_there = forward is not None and _is_complete(run, other, forward)
    if world.broadcast(is_there) and forward is not None:
        return make_references(run, light, other, found, forward, world)
    run.say(
        f"train: the reference is {task.reference.config.id} (train.reference_model), which is "
        "loaded first, by itself"
    )
    references = _compute(run, task, other, found, world, zero)
    _release_memory()
    return references


def _compute(
    run: Run,
    task: Task,
    other: Task,
    found: TaskLists,
    world: "World",
    zero: "ZeroConfig | None",
) -> References:
    from perpo_pipeline.train.engine import ready_model
    from perpo_pipeline.train.sharded_weights import gathered_by_module, sharded_loading

    assert task.reference is not None
    with (
        run.bar(f"train {task.variant}", doing="loading the reference model"),
        sharded_loading(zero, other.resolved, other.model_settings["dtype"]),
    ):
        vlm = open_model(task.reference.config, other.resolved, other.model_settings, run.scratch)
    with gathered_by_module(vlm.model):
        forward, _ = prove_forward(run, vlm, other, found.first_sampled, world)
    ready_model(vlm, forward, task.settings)
    with gathered_by_module(vlm.model):
        check_forward(run, vlm, other, found.first_sampled, forward)
        return make_references(run, vlm, other, found, forward, world)


def _release_memory() -> None:
    """Give back what the released model had: modules refer to each other in circles."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _known_forward(light: "Vlm", task: Task) -> "Forward | None":
    """The forward that the model's log-probabilities have; None if only its weights can say."""
    from perpo_pipeline.train.engine import choose_forward

    if task.settings.forward == "auto" and not light.is_tested:
        return None
    return choose_forward(light, task.settings.forward)


def _is_complete(run: Run, task: Task, forward: "Forward") -> bool:
    from perpo_pipeline.train.reference import reference_recipe

    images = [OWN, BLANK] if task.settings.chosen_method.blank_image else [OWN]
    return all(
        version_of(
            _place(run, task, image),
            reference_recipe(task.preferences, task.model_settings, forward, image or None),
        )
        for image in images
    )


def _place(run: Run, task: Task, image: str) -> Path:
    suffix = f"-{image}-image" if image else ""
    if run.out:
        return run.out / f"reference{suffix}"
    return run.place("reference", f"{task.preferences.variant}{suffix}")


def _of_lists(
    run: Run,
    vlm: "Vlm",
    task: Task,
    lists: "Sequence[TrainingList]",
    forward: "Forward",
    world: "World",
    image: str,
) -> Logps:
    """The log-probabilities of whole lists under `vlm`, by prompt_id."""
    from perpo_pipeline.train.reference import make_reference

    version: Version = make_reference(
        run,
        vlm,
        task.preferences,
        lists,
        task.settings,
        task.model_settings,
        forward,
        place=_place(run, task, image),
        world=world,
        image=image or None,
    )
    logps = version.table().to_pydict()
    return dict(zip(logps["prompt_id"], logps["ref_logps"], strict=True))
