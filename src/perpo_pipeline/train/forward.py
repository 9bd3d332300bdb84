"""Which forward a training uses, what the run says about it, and the checks on its lists."""

from typing import TYPE_CHECKING

from perpo_pipeline.run import Run
from perpo_pipeline.train.task import Task
from perpo_pipeline.vlm.inputs import encode_row

if TYPE_CHECKING:
    from perpo_pipeline.config.train import TrainSettings
    from perpo_pipeline.train.lists import TrainingList
    from perpo_pipeline.train.processes import World
    from perpo_pipeline.train.token_budget import Forward
    from perpo_pipeline.vlm.models import Vlm, Way


def choose_forward_and_say(run: Run, vlm: "Vlm", settings: "TrainSettings") -> "Forward":
    """Resolve `train.forward`; prints why where `auto` chooses the slow one."""
    from perpo_pipeline.train.engine import choose_forward

    forward = choose_forward(vlm, settings.forward)
    if settings.forward == "auto" and forward == "separate":
        _say_slow(run, vlm, settings, vlm.way.why)
    return forward


def _say_slow(run: Run, vlm: "Vlm", settings: "TrainSettings", why: str) -> None:
    run.say(
        f"train: one full row per completion (forward: separate) for this "
        f"'{vlm.family.name}' model, which is slow: {why}"
    )
    if settings.compile:
        run.say(
            "train: nothing is compiled (train.compile: true), because these rows have another "
            "length at each step"
        )


def prove_forward(
    run: Run, vlm: "Vlm", task: Task, entry: "TrainingList", world: "World"
) -> tuple["Forward", str]:
    """The forward to train with, and why; both are the same in every process.

    `auto` proves the shared prefix on one list of a model that no test covers, with the kernels of
    the plain model: `check_forward` then checks the prepared one.
    """
    from perpo_pipeline.train.engine import choose_forward, memory_explained
    from perpo_pipeline.train.self_check import prove_training
    from perpo_pipeline.train.shared_prefix import CompletionList

    settings = task.settings
    if settings.forward != "auto":
        return choose_forward(vlm, settings.forward), f"train.forward: {settings.forward}"
    way = agreed(world, vlm.way)
    if way.shares_prefix and not vlm.is_tested:
        prompt = encode_row(vlm, entry.prompt, task.model_settings["preprocess"])
        encoded = CompletionList(prompt, entry.completions)
        with memory_explained(settings, num_lists=1):
            found = prove_training(vlm, encoded, max_tokens=settings.max_tokens_per_forward)
        way = agreed(world, found)
        if way.shares_prefix:
            run.say(f"train: this '{vlm.family.name}' model shares a prefix: {way.why}")
    if not way.shares_prefix:
        _say_slow(run, vlm, settings, way.why)
        return "separate", way.why
    return "shared-prefix", way.why


def agreed(world: "World", way: "Way") -> "Way":
    """The way that every process takes: a prefix is shared only if all of them found it exact.

    Figures near their limit differ between processes, as their cards' roundings and free memory do.
    """
    found = world.gather(way)  # empty in all processes but the first, whose choice counts
    return world.broadcast(next((one for one in found if not one.shares_prefix), way))


def check_forward(
    run: Run, vlm: "Vlm", task: Task, entry: "TrainingList", forward: "Forward"
) -> None:
    """Compare one list's log-probabilities with another way to compute them; InputError if they
    differ."""
    from perpo_pipeline.train.engine import memory_explained
    from perpo_pipeline.train.self_check import check_own_head, check_shared_prefix
    from perpo_pipeline.train.shared_prefix import CompletionList

    settings, limit = task.settings, task.settings.max_tokens_per_forward
    prompt = encode_row(vlm, entry.prompt, task.model_settings["preprocess"])
    encoded = CompletionList(prompt, entry.completions)
    if not vlm.family.is_tested:
        with memory_explained(settings, num_lists=1):
            check_own_head(vlm, encoded)
    if forward == "separate":
        return
    with (
        run.bar(
            f"train {task.variant}", doing="comparing one list with a slower way to compute it"
        ),
        # A list that fills a forward by itself is computed by itself, whatever the limit.
        memory_explained(settings, num_lists=encoded.num_packed_tokens >= limit),
    ):
        found = check_shared_prefix(
            vlm, encoded, max_tokens=limit, row_lengths=settings.row_lengths
        )
    run.say(f"train: self-check passed; {found}")
