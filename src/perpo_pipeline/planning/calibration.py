"""A few seconds of the real work on this machine, for models that are small enough for it.

One batch is sampled, one is answered greedily, and one step of each method is trained, all by the
code that the stages use; nothing is written.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from perpo_pipeline.config.train import TrainSettings
from perpo_pipeline.planning.amounts import Row
from perpo_pipeline.planning.model import Model, cache_folder
from perpo_pipeline.planning.rates import Rate, Rates
from perpo_pipeline.planning.tokens import Answers, measured_answers
from perpo_pipeline.run import Run
from perpo_pipeline.train.lists import (
    TrainingList,
    choose_completions,
    ground_truth_list,
    with_blank_images_of,
)
from perpo_pipeline.vlm.chat import answer_turn
from perpo_pipeline.vlm.inputs import encode_row, open_model

if TYPE_CHECKING:
    from perpo_pipeline.vlm.completion import Completion
    from perpo_pipeline.vlm.models import Vlm

SMALL = 50_000_000  # parameters
SPREAD = 1.3
EVALUATED = 64  # prompts
REPEATS = 3
NO_WORK = {
    "seed",
    "learning_rate",
    "beta",
    "gamma",
    "reward_temperature",
    "order",
    "epochs",
    "warmup_ratio",
    "lr_scheduler",
}
"""Training settings that change what is learned and not how long a step takes."""


@dataclass(frozen=True)
class Seconds:
    """How long a piece of work took on the wall, and the processor's time of all its threads."""

    wall: float
    processor: float

    def span(self, threads: int | None) -> tuple[float, float]:
        """From what it takes if nothing else runs and all threads work, to what it took now.

        `threads` is None where the work is not the processor's.
        """
        low = self.wall / SPREAD
        if threads is not None:
            low = min(low, self.processor / threads)
        return low, self.wall * SPREAD


@dataclass(frozen=True)
class Calibration:
    """What was measured: rates, and the answers that were sampled meanwhile."""

    rates: Rates
    answers: Answers


def is_small(model: Model) -> bool:
    """Whether a few seconds of the real work say something about the model's speed."""
    return (
        model.resolved is not None and model.shape is not None and (model.shape.parameters <= SMALL)
    )


def calibrate(run: Run, model: Model, rows: Sequence[Row]) -> Calibration:
    """Do a small piece of every stage that uses the model, and time it."""
    assert model.resolved is not None and model.vlm is not None
    config = run.config
    dtype = {"dtype": "bfloat16" if model.half else "float32"}
    resolved = model.resolved
    start, vlm = _timed(lambda: open_model(config.model, resolved, dtype, cache_folder(run)))
    worker = _Worker(run, vlm, start)
    batch = rows[: config.sample.largest_batch]
    worker.sample(batch[:2])  # the first call takes longer
    seconds, lists = _timed(lambda: worker.sample(batch))
    rates: Rates = {("sample", ""): worker.rate(seconds, len(batch))}
    greedy = rows[: min(EVALUATED, config.eval.largest_batch)]
    seconds, _ = _timed(lambda: worker.answer(greedy))
    rates["eval", ""] = worker.rate(seconds, len(greedy))
    rates |= worker.train(batch, lists)
    every = [one.token_ids for answers in lists for one in answers]
    return Calibration(
        rates, measured_answers(every, config.sample.num_samples, config.filter.list_size)
    )


def _timed(work: Callable[[], Any]) -> tuple["Seconds", Any]:
    begun, computed = time.perf_counter(), time.process_time()
    found = work()
    return Seconds(time.perf_counter() - begun, time.process_time() - computed), found


class _Worker:
    """The stages' own code on a few rows."""

    def __init__(self, run: Run, vlm: "Vlm", start: Seconds) -> None:
        self.run, self.vlm, self.start = run, vlm, start
        self.preprocess = run.config.model.preprocess

    def rate(self, seconds: Seconds, number: int) -> Rate:
        """The rate of what took `seconds` for `number` prompts or lists."""
        import torch

        threads = None if self.vlm.device.type == "cuda" else torch.get_num_threads()
        low, high = seconds.span(threads)
        start = self.start.span(threads)
        return Rate(low / number, high / number, "a few seconds of it, done here now", start)

    def sample(self, rows: Sequence[Row]) -> "list[list[Completion]]":
        """The lists of some prompts."""
        from perpo_pipeline.vlm.decoding import sample_lists

        prompts = [encode_row(self.vlm, row, self.preprocess) for row in rows]
        how = asdict(self.run.config.sample.decoding())
        return sample_lists(self.vlm, prompts, seeds=list(range(len(rows))), **how)

    def answer(self, rows: Sequence[Row]) -> None:
        """One greedy answer to each of some prompts."""
        from perpo_pipeline.vlm.decoding import greedy_decode

        prompts = [encode_row(self.vlm, row, self.preprocess) for row in rows]
        greedy_decode(self.vlm, prompts, max_new_tokens=self.run.config.eval.longest())

    def train(self, rows: Sequence[Row], sampled: "list[list[Completion]]") -> Rates:
        """The reference, and a step of each method, on lists of these prompts."""
        from perpo_pipeline.train.engine import choose_forward, ready_model

        rates: Rates = {}
        known: dict[str, Rate] = {}
        for name, settings in self.run.config.train.variants().items():
            work = settings.model_dump_json(exclude=NO_WORK)
            if work not in known:
                forward = choose_forward(self.vlm, settings.forward)
                ready_model(self.vlm, forward, settings)
                lists = self._lists(rows, sampled, settings)[: settings.batch_size]
                step, reference, blank = _time_step(self, lists, settings, forward)
                known[work] = self.rate(step, len(lists))
                if blank is not None:
                    rates["reference", "blank"] = self.rate(blank, len(lists))
                whole = settings.chosen_method.trains_on == "lists"
                if whole or ("reference", "") not in rates:
                    rates["reference", ""] = self.rate(reference, len(lists))
            rates["train", name] = known[work]
        return rates

    def _lists(
        self, rows: Sequence[Row], sampled: "list[list[Completion]]", settings: TrainSettings
    ) -> list[TrainingList]:
        """Lists of distinct answers with made-up rewards, which cost as much as real ones.

        Where all answers to a prompt are equal, a second one is made up, too.
        """
        lists, kept = [], self.run.config.filter.list_size
        for row, answers in zip(rows, sampled, strict=True):
            distinct = list(dict.fromkeys(tuple(one.token_ids) for one in answers[:kept]))
            if len(distinct) == 1:  # a list needs two, and a trial has few prompts to find one in
                distinct.append((*distinct[0], *distinct[0][:1]))
            rewards = [1 - i / (len(distinct) + 1) for i in range(len(distinct))]
            counts, ref = [1] * len(distinct), [0.0] * len(distinct)
            lists.append(TrainingList(row, distinct, rewards, counts, ref))
        if settings.chosen_method.trains_on == "truth":
            turn = answer_turn(self.vlm)
            return [ground_truth_list(e, self.vlm, self.run.config.model, turn) for e in lists]
        method = settings.chosen_method
        chosen = choose_completions([e for e in lists if len(e.counts) > 1], method)
        return with_blank_images_of(chosen, method, self.vlm)


def _time_step(
    worker: _Worker, lists: Sequence[TrainingList], settings: TrainSettings, forward: Any
) -> tuple[Seconds, Seconds, Seconds | None]:
    """Seconds of one optimiser step on `lists`, of the reference, and of that behind blank images
    (None if the method needs none)."""
    import torch

    from perpo_pipeline.train.batches import ListCollator
    from perpo_pipeline.train.engine import ListPolicy, reference_logps
    from perpo_pipeline.train.scope import make_trainable
    from perpo_pipeline.train.trainer import batch_losses

    vlm = worker.vlm
    collate = ListCollator(
        vlm, worker.preprocess, forward, settings.max_tokens_per_forward, settings.row_lengths
    )

    def seconds_of_reference(some: Sequence[TrainingList]) -> Seconds:
        return _timed(lambda: reference_logps(vlm.model, collate(some)["batches"]))[0]

    reference = seconds_of_reference([replace(entry, negative=None) for entry in lists])
    negatives = [entry.negative for entry in lists if entry.negative is not None]
    blank = seconds_of_reference(negatives) if negatives else None
    policy = make_trainable(vlm, settings)
    model = ListPolicy(policy)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate)

    def step() -> None:
        for batch in collate(lists)["batches"]:
            on_device = batch.to(vlm.device)
            loss = batch_losses(model(on_device.lists), on_device, settings).sum() / len(lists)
            torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    model.train()
    step()
    seconds, _ = _timed(step)
    if settings.tuning == "lora":
        policy.unload()
    policy.requires_grad_(False)
    return seconds, reference, blank


def measure_machine(*, on_gpu: bool) -> tuple[float, float]:
    """Floating-point operations per second of a matrix product, and bytes per second of a copy."""
    import torch

    size, device = (8192, "cuda") if on_gpu else (1536, "cpu")
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if on_gpu else torch.float32)
    source = torch.empty(2**28 if on_gpu else 2**26, device=device)

    def finish() -> None:
        if on_gpu:
            torch.cuda.synchronize()

    def products() -> None:
        for _ in range(REPEATS):
            torch.mm(a, a)
        finish()

    def copies() -> None:
        for _ in range(REPEATS):
            source.clone()
        finish()

    products()
    copies()
    product, _ = _timed(products)
    copy, _ = _timed(copies)
    return REPEATS * 2 * size**3 / product.wall, REPEATS * 2 * source.nbytes / copy.wall
