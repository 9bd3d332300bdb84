"""What an adapter is trained from; all of it is known before any weights are loaded.

Training and `--dry-run` both read it here, so that they plan for the same lists.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from perpo_pipeline import advice
from perpo_pipeline.config.fingerprints import box_settings, counted_settings, stage_version
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.config.train import TrainSettings
from perpo_pipeline.errors import ArtifactError, ConfigError, InputError
from perpo_pipeline.run import Run
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.finding import reuse_complete
from perpo_pipeline.store.list_prompts import prompts_of_lists, rows_of_prompts
from perpo_pipeline.store.places import name_prompt
from perpo_pipeline.store.schemas import PROMPTS
from perpo_pipeline.store.writing import Recipe
from perpo_pipeline.train import integrations
from perpo_pipeline.train.earlier_lists import check_token_ids
from perpo_pipeline.train.lists import TrainingList, ground_truth_list, ranked_lists
from perpo_pipeline.vlm.cards import check_cards
from perpo_pipeline.vlm.chat import answer_turn, check_thinking
from perpo_pipeline.vlm.inputs import (
    IDENTITY_CACHE,
    context_length,
    count_row_tokens,
    find_model,
    model_notes,
)
from perpo_pipeline.vlm.several_images import refuse_several_images

if TYPE_CHECKING:
    from perpo_pipeline.vlm.files import ResolvedModel
    from perpo_pipeline.vlm.models import Vlm

PROMPT_COLUMNS = [
    *PROMPTS.pick("prompt_id", "place", "task", "width", "height", "prompt", "history"),
    *PROMPTS.role("image"),
    *PROMPTS.role("truth"),
]
SHOWN = 5  # prompts in a message
# What a message about the trained model calls its settings, and what they are of the reference.
_REVISION = ("model.revision", "train.reference_revision")
_ID = ("model.id", "train.reference_model")


@dataclass(frozen=True)
class ReferenceModel:
    """Another model than the trained one, whose log-probabilities are the reference."""

    config: ModelConfig
    resolved: "ResolvedModel"
    model_settings: dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What one adapter (`variant`: a method, or a method with a seed) is trained from.

    `reference` is None where the trained model, as it is before training, is the reference.
    """

    variant: str
    settings: TrainSettings
    preferences: Version
    resolved: "ResolvedModel"
    model_settings: dict[str, Any]
    recipe: Recipe
    reference: "ReferenceModel | None" = None

    def of_reference(self) -> "Task":
        """The task with the reference model in place of the trained one; raises ValueError if they
        are the same."""
        if self.reference is None:
            raise ValueError("the reference is the trained model")
        other = self.reference
        return replace(self, resolved=other.resolved, model_settings=other.model_settings)


@dataclass(frozen=True)
class TaskLists:
    """The lists to train on, with the token count of each prompt.

    `lists` hold what the method needs: whole sampled lists, or the ground truth, of the tasks that
    are trained; `of_all_tasks` are those of the others, too. `first_sampled` is the sampled list of
    the first prompt in `lists`. `dropped` has the prompt_ids of the lists that are longer than the
    model's context.
    """

    lists: list[TrainingList]
    of_all_tasks: list[TrainingList]
    first_sampled: TrainingList
    dropped: list[str]


def task_of(run: Run, variant: str, *, computes_here: bool = True) -> Task:
    """Find what a variant is trained from, and its recipe; a plan does not compute here."""
    settings = run.config.train.variants()[variant]
    preferences = run.latest("preferences", run.config.sample.split)
    prompts, *_ = prompts_of_lists(preferences)  # raises before a model is loaded
    resolved, model_settings = find_model(
        run.config.model, run.scratch, computes_here=computes_here
    )
    reference = _reference_model(run, settings, model_settings["model"], computes_here)
    found = {**model_settings, **box_settings(run.config.model)}
    notes = model_notes(run.config.model)
    if reference is not None:
        found["reference_model"] = reference.model_settings["model"]
        notes["reference_model_id"] = reference.config.id
    recipe = Recipe(
        "adapter",
        variant,
        "train",
        stage_version("adapter", "train", {"method": settings.method}),
        counted_settings("adapter", settings, found),
        {"preferences": preferences, "prompts": prompts},
        notes=notes,
    )
    return Task(variant, settings, preferences, resolved, model_settings, recipe, reference)


def _reference_model(
    run: Run, settings: TrainSettings, trained: str, computes_here: bool
) -> ReferenceModel | None:
    """The model of `train.reference_model`; None if it is not set, or is the trained model, whose
    identity is `trained`."""
    config = settings.reference_of(run.config.model)
    if config is None:
        return None
    try:
        resolved, found = find_model(config, run.scratch, computes_here=computes_here)
    except (InputError, ConfigError) as error:
        kind = InputError if isinstance(error, InputError) else ConfigError
        fix = (error.fix or "").replace(*_REVISION).replace(*_ID)
        what = f"train.reference_model: {error.what}"
        raise kind(what, where=error.where, fix=fix or None) from error
    return None if found["model"] == trained else ReferenceModel(config, resolved, found)


def reuse_trained(run: Run, variant: str) -> Version | None:
    """The complete version of a variant, or None; makes a version that it finds the one in use."""
    task = task_of(run, variant)
    place = run.out or run.place("adapter", variant)
    recipe = run.with_options(task.recipe)
    return reuse_complete(place, recipe, lambda _: has_older_targets(run, task))


def has_older_targets(run: Run, task: Task) -> bool:
    """Whether a method that trains on the truth has the targets of stage version 2.

    Then an answer ended with the first of the model's end tokens, nothing stood before it, and
    control tokens that a text spells were not taken as text.
    """
    from perpo_pipeline.vlm.loading import load_without_weights

    vlm = load_without_weights(task.resolved, identity_cache=run.scratch / IDENTITY_CACHE)
    turn = answer_turn(vlm)
    if turn.start or turn.end_id != vlm.eos_token_ids[0]:
        return False
    texts = (
        row[name] or ""
        for part in rows_of_prompts(task.preferences, ["prompt_id", "prompt", "gt_text"])
        for row in part.to_pylist()
        for name in ("prompt", "gt_text")
    )
    return not any(map(vlm.plain.spelled, texts))


def read_lists(run: Run, task: Task, vlm: "Vlm") -> TaskLists:
    """Read the task's lists, choose what the method needs, and leave out what is too long.

    Raises InputError for lists that are longer than the model's context, unless the settings drop
    them, and for earlier lists of another tokenizer; ArtifactError for a prompt that is missing.
    """
    for part in rows_of_prompts(task.preferences, ["prompt_id", "place", "more_image_facts"]):
        refuse_several_images(vlm, part)
    check_token_ids(vlm, task.preferences)
    sampled = ranked_lists(*_rows_and_prompts(task.preferences))
    _check_tasks_have_lists(task, sampled)
    lists = sampled
    if not task.settings.chosen_method.needs_preferences:
        sampled = lists = [one for one in sampled if task.settings.learns(one.prompt["task"])]
        check_thinking(vlm, run.config.model.answer.thinking)
        turn = answer_turn(vlm)
        lists = [ground_truth_list(entry, vlm, run.config.model, turn) for entry in sampled]
    lists = _with_prompt_tokens(run, task, vlm, lists)
    every, dropped = _drop_too_long(run, task, vlm, lists)
    lists = [one for one in every if task.settings.learns(one.prompt["task"])]
    first = lists[0].prompt["prompt_id"]
    first_sampled = next(entry for entry in sampled if entry.prompt["prompt_id"] == first)
    return TaskLists(lists, every, first_sampled, dropped)


def _check_tasks_have_lists(task: Task, sampled: Sequence[TrainingList]) -> None:
    """Raise ArtifactError unless each task that is to be learned has a list."""
    there = {entry.prompt["task"] for entry in sampled}
    missing = [one for one in task.settings.tasks or () if one not in there]
    if missing:
        raise ArtifactError(
            f"train {task.variant}: there is no list of {' or '.join(missing)}; the lists are of "
            f"{' and '.join(sorted(there))}",
            where=str(task.preferences.path),
            fix=f"change train.methods.{task.variant}.tasks, or keep such lists: "
            + advice.command("filter"),
        )


def _rows_and_prompts(
    preferences: Version,
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """The preferences, and their prompts by id."""
    by_id = {
        row["prompt_id"]: row
        for part in rows_of_prompts(preferences, PROMPT_COLUMNS)
        for row in part.to_pylist()
    }
    return preferences.table().to_pylist(), by_id


def _with_prompt_tokens(
    run: Run, task: Task, vlm: "Vlm", lists: Sequence[TrainingList]
) -> list[TrainingList]:
    preprocess = task.model_settings["preprocess"]
    return [
        replace(entry, prompt_tokens=count_row_tokens(vlm, entry.prompt, preprocess))
        for entry in run.progress(lists, "lengths of the lists", unit="lists")
    ]


def _drop_too_long(
    run: Run, task: Task, vlm: "Vlm", lists: list[TrainingList]
) -> tuple[list[TrainingList], list[str]]:
    """The lists that fit into the model's context, and the prompt_ids of the longer ones.

    Lists are never cut: a list without its end, or an image without some of its tokens, would be a
    different list.
    """
    limit = context_length(vlm)
    lengths = {
        entry.prompt["prompt_id"]: (entry.prompt_tokens or 0) + max(map(len, entry.completions))
        for entry in lists
    }
    too_long = [p for p, length in lengths.items() if limit is not None and length > limit]
    names = {entry.prompt["prompt_id"]: name_prompt(entry.prompt) for entry in lists}
    shown = ", ".join(f"{names[p]}, {lengths[p]} tokens" for p in too_long[:SHOWN])
    shown += ", ..." if len(too_long) > SHOWN else ""
    if too_long and (not task.settings.drop_too_long or len(too_long) == len(lists)):
        is_drawn = task.settings.chosen_method.needs_preferences
        raise InputError(
            f"{len(too_long)} of {len(lists)} lists are longer than the model's context of "
            f"{limit} tokens",
            where=shown,
            fix=("lower sample.max_new_tokens, or " if is_drawn else "shorten them, or ")
            + "leave them out with --set train.drop_too_long=true",
        )
    if too_long:
        run.say(f"train: dropped {len(too_long)} lists longer than {limit} tokens: {shown}")
    dropped = set(too_long)
    return [entry for entry in lists if entry.prompt["prompt_id"] not in dropped], too_long


def check_before_start(run: Run, variant: str, num_processes: int, world_size: int) -> None:
    """Raise for what would make the processes fail at once."""
    import torch

    check_processes(run, run.config.train.variants()[variant], world_size)
    if uses_cuda(run) and torch.cuda.device_count() < num_processes:
        raise ConfigError(
            f"--num-processes is {num_processes}, but this node has {torch.cuda.device_count()} "
            "GPUs",
            fix="set --num-processes to the number of GPUs of a node",
        )


def check_processes(run: Run, settings: TrainSettings, world_size: int) -> None:
    """Raise for settings that `world_size` processes cannot train with, for cards that cannot
    compute as the settings ask, and for missing packages.

    Puts the compiler tools of this Python's environment on PATH if DeepSpeed may need them.
    """
    from perpo_pipeline.train.compilation import is_compiled
    from perpo_pipeline.train.levers.checks import check_levers
    from perpo_pipeline.train.zero import (
        check_installed,
        put_ninja_on_path,
        read_zero_config,
        zero_stage,
    )

    check_batch_size(settings.batch_size, world_size)
    check_cards(run.config.model, world_size)
    integrations.check_installed(settings.log_to)
    zero = None if settings.deepspeed is None else read_zero_config(settings.deepspeed)
    on_cuda = uses_cuda(run)
    compiled = is_compiled(
        settings, "shared-prefix", on_cuda=on_cuda, quantization=run.config.model.quantization
    )
    check_levers(settings.levers, zero_stage=zero_stage(zero), on_cuda=on_cuda, compiled=compiled)
    if zero is not None:
        put_ninja_on_path()
        check_installed(zero)


def check_batch_size(batch_size: int, num_processes: int) -> None:
    """Raise ConfigError if some processes would have no list in a step."""
    if batch_size < num_processes:
        raise ConfigError(
            f"train.batch_size is {batch_size} lists per step, for {num_processes} processes: some "
            "processes would have no list",
            fix=f"use at most {batch_size} processes, or raise train.batch_size (which changes "
            "the result)",
        )


def uses_cuda(run: Run) -> bool:
    """Whether the run's model will be on a GPU."""
    import torch

    return run.config.model.device != "cpu" and torch.cuda.is_available()
