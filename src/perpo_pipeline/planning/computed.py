"""Speeds that are computed from a model's shape and a card's peak and bandwidth.

A forward takes 2 floating-point operations per parameter and token; training a LoRA adapter takes 4
(the gradients of frozen weights are left out), training the weights 6, and gradient checkpointing 2
more. Writing an answer reads all weights once per token, for all prompts of a batch together, or
computes for all of its rows, whichever takes longer. The vision tower counts as if its tokens went
through the language model. Attention over long prompts is not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from perpo_pipeline.planning.hardware import Hardware, published
from perpo_pipeline.planning.rates import Rate, Rates
from perpo_pipeline.planning.tokens import Answers, PromptTokens
from perpo_pipeline.planning.training import Training
from perpo_pipeline.run import Run
from perpo_pipeline.train.memory import Shape

VLLM_ROWS = 256  # answers that vLLM writes at a time


def computed_rates(
    run: Run,
    hardware: Hardware,
    shape: Shape,
    tokens: PromptTokens,
    answers: Answers,
    trainings: Sequence[Training],
    *,
    backend: str,
) -> Rates:
    """The rate of each stage that uses the model; empty if the card's figures are unknown.

    All devices work: prompts and lists are shared by as many processes.
    """
    if hardware.flops is None or hardware.bandwidth is None:
        return {}
    if hardware.is_gpu and shape.weight_bytes > 2:  # the published peaks are those of bfloat16
        return {}
    machine = _Machine(hardware, hardware.flops, hardware.bandwidth, shape)
    prompt = sum(tokens.whole) / len(tokens.whole)
    truth = sum(tokens.truth) / len(tokens.truth) if len(tokens.truth) else answers.tokens[0]
    sample, evaluate = run.config.sample, run.config.eval
    n = sample.num_samples
    whole = _Trained(answers.distinct, answers.list_tokens())
    separate = any(one.forward == "separate" and _needs_reference(one) for one in trainings)
    rates: Rates = {
        ("sample", ""): machine.answering(
            prompt, answers.tokens, n, _rows(backend, sample.largest_batch, n)
        ),
        ("eval", ""): machine.answering(
            prompt,
            (truth, min(answers.tokens[1], evaluate.longest())),
            1,
            _rows(backend, evaluate.largest_batch, 1),
        ),
        ("reference", ""): machine.training(_read(prompt, whole, separate), whole.tokens, 2),
        ("reference", "blank"): machine.training((prompt, prompt), answers.tokens, 2),
    }
    first = next((training for training in trainings if training.is_compiled), None)
    for training in trainings:
        trained = _trained(training, answers, truth)
        each = 6 if training.settings.tuning == "full" else 4
        each += 2 * training.settings.gradient_checkpointing
        read = _read(prompt, trained, training.forward == "separate")
        rate = machine.training(read, trained.tokens, each)
        rates["train", training.variant] = _compiling(rate) if training is first else rate
    return rates


def _compiling(rate: Rate) -> Rate:
    """The rate of a training whose first step compiles; Inductor keeps the result for others."""
    stated: dict[str, Any] = published()["compile"]
    start = (rate.start[0] + stated["seconds"][0], rate.start[1] + stated["seconds"][1])
    return replace(rate, start=start)


def _rows(backend: str, batch_size: int, num_samples: int) -> int:
    return VLLM_ROWS if backend == "vllm" else batch_size * num_samples


@dataclass(frozen=True)
class _Trained:
    """What a method trains on of a list, (low, high): its answers and their tokens.

    `prompts` counts the prompt itself, and again where it is behind a blank image.
    """

    answers: tuple[float, float]
    tokens: tuple[float, float]
    prompts: int = 1


def _trained(training: Training, answers: Answers, truth: float) -> _Trained:
    method = training.settings.chosen_method
    low, high = answers.tokens
    if method.trains_on == "truth":
        return _Trained((1, 1), (truth, truth))
    if method.blank_image:  # a second prefix, with the best answer
        return _Trained((3, 3), (3 * low, 3 * high), prompts=2)
    if method.trains_on == "pair":
        return _Trained((2, 2), (2 * low, 2 * high))
    return _Trained(answers.distinct, answers.list_tokens())


def _read(prompt: float, trained: _Trained, separate: bool) -> tuple[float, float]:
    """Tokens of the prompt that are read for a list: once, or in a row for each of its answers."""
    low, high = trained.answers if separate else (trained.prompts, trained.prompts)
    return low * prompt, high * prompt


def _needs_reference(training: Training) -> bool:
    return training.settings.chosen_method.needs_preferences


class _Machine:
    """A model's shape on devices with a peak and a bandwidth."""

    def __init__(self, hardware: Hardware, flops: float, bandwidth: float, shape: Shape) -> None:
        figures = published()["utilisation" if hardware.is_gpu else "utilisation-cpu"]
        stated: dict[str, Any] = figures
        self.shape, self.count = shape, hardware.count
        least, most = stated["compute"]
        self.flops = flops * most, flops * least
        least, most = stated["bandwidth"]
        self.bandwidth = bandwidth * most, bandwidth * least
        low, high = stated["compute"]
        self.source = (
            f"computed from FLOPs at {100 * low:.0f} to {100 * high:.0f} % of the "
            f"{hardware.source}; this share is stated, not measured"
        )

    def answering(
        self, prompt: float, answer: tuple[float, float], per_prompt: int, rows: int
    ) -> Rate:
        """Seconds per prompt, of which `per_prompt` answers are written, `rows` at a time."""
        return self._rate(
            *(
                2 * self.shape.parameters * prompt / flops
                + per_prompt * tokens * self._token(flops, bandwidth, rows)
                for flops, bandwidth, tokens in zip(self.flops, self.bandwidth, answer, strict=True)
            )
        )

    def _token(self, flops: float, bandwidth: float, rows: int) -> float:
        """Seconds for one token of one row."""
        shape = self.shape
        reading = shape.weights / bandwidth / rows
        return max(reading, 2 * shape.parameters / flops)

    def training(
        self, prompt: tuple[float, float], answers: tuple[float, float], each: int
    ) -> Rate:
        """Seconds per list with these tokens; `each` operations per parameter and token."""
        return self._rate(
            *(
                each * self.shape.parameters * (read + written) / flops
                for flops, read, written in zip(self.flops, prompt, answers, strict=True)
            )
        )

    def _rate(self, low: float, high: float) -> Rate:
        return Rate(low / self.count, high / self.count, self.source, self._start())

    def _start(self) -> tuple[float, float]:
        stated: dict[str, Any] = published()["start"]
        weights = self.shape.parameters * self.shape.weight_bytes / 1e9
        (low, high), (slow, fast) = stated["seconds"], stated["load"]
        return low + weights / fast, high + weights / slow
