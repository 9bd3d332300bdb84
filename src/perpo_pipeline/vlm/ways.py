"""May the completions of a model share their prompt? Proven on its own weights, when first asked.

Made-up prompts and answers are computed twice: by the packed decoding of vlm/decoding.py, and by
one plain forward of the whole transformers model per answer, which makes its own masks, positions
and logits. They depend on nothing but the model, so every run and every stage decides alike. One
prompt is longer than the model's windows, so that those matter. Training repeats the comparison
with its own lists, kernels and gradients (train/self_check.py).

It costs one plain forward for each of the 6 answers (18 in bf16) and packed steps for the longest
answer: about what sampling two prompts the plain way costs.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from perpo_pipeline.errors import ConfigError, InputError, first_line
from perpo_pipeline.vlm.decoding import force_lists
from perpo_pipeline.vlm.exactness import Comparison, rounding_of_kernels
from perpo_pipeline.vlm.models import EncodedPrompt, Vlm, Way, base_model, type_arguments
from perpo_pipeline.vlm.per_token import over_row
from perpo_pipeline.vlm.plain_decoding import force_list
from perpo_pipeline.vlm.prompts import encode_prompt
from perpo_pipeline.vlm.recurrent import use_recurrent_steps
from perpo_pipeline.vlm.refusals import REFUSALS, ran_out_of_memory, says_nothing
from perpo_pipeline.vlm.tensors import cast_tensors

SIZES = ((64, 48), (48, 72))  # of the images, width and height
ANSWER_TOKENS = (3, 9, 6)
LONGEST_PROMPT = 4200  # tokens: above the usual windows, and quick on a GPU
# Unlike, so that the state of one prompt is not that of the other.
WORDS, LATER_WORDS = " where is it", " it is where"
PADDINGS = (0, 67, 131)  # tokens before each plain row in bf16, where padding changes the rounding


@torch.no_grad()
def prove_way(vlm: Vlm) -> Way:
    """Find out whether completions may share a prompt on this model.

    Raises ConfigError if memory runs out; errors of the accelerator pass. Call it outside inference
    mode (`Vlm.way` does).
    """
    doing = "its layers with a state cannot be prepared"
    try:
        if (why := _layers_refuse(vlm)) is not None:
            return Way(False, why)
        doing = "made-up prompts cannot be computed one by one"
        prompts = made_up_prompts(vlm)
        answers = [_answers(vlm, seed) for seed in range(len(prompts))]
        with _as_transformers_computes(vlm):
            plain = _plain_runs(vlm, prompts, answers)
        doing = "its forward does not take a shared prefix"
        shared = force_lists(vlm, prompts, answers)
    except (*REFUSALS, MemoryError) as error:
        if ran_out_of_memory(error):
            raise _out_of_memory(error) from error
        if says_nothing(error):
            raise
        return Way(False, f"{doing} ({type(error).__name__}: {first_line(error)})")
    magnitude = float(plain[0].abs().max())
    found = Comparison(
        shared=float((shared - plain[0]).abs().max()),
        plain=max(float((one - other).abs().max()) for one in plain for other in plain),
        rounding=rounding_of_kernels(vlm.dtype, magnitude, max(ANSWER_TOKENS)),
        magnitude=magnitude,
    )
    if not found.is_exact:
        return Way(False, f"it is not exact on this model: {found}")
    return Way(True, f"it is exact on this model's own weights: {found}")


def _layers_refuse(vlm: Vlm) -> str | None:
    """Prepare the layers that have a state; why they cannot be, or None."""
    if vlm.layers.recurrent:
        try:
            use_recurrent_steps(base_model(vlm.model))
        except InputError as error:
            return error.what
    return None


def made_up_prompts(vlm: Vlm) -> list[EncodedPrompt]:
    """Two prompts with an image: a short one, and one that is longer than the model's windows if
    these are not above LONGEST_PROMPT."""
    short = encode_prompt(vlm, _picture(*SIZES[0]), WORDS)
    more = len(vlm.plain.ids(LATER_WORDS * 2)) - len(vlm.plain.ids(LATER_WORDS))
    text = base_model(vlm.model).config.get_text_config()
    context = getattr(text, "max_position_embeddings", None) or LONGEST_PROMPT
    longest = min(LONGEST_PROMPT, context - 2 * max(ANSWER_TOKENS))
    wanted = min(vlm.layers.longest_limit + 8, longest) - short.num_tokens
    repeats = 2 + max(0, wanted) // max(1, more)
    return [short, encode_prompt(vlm, _picture(*SIZES[1]), LATER_WORDS * (repeats + 3))]


def _out_of_memory(error: Exception) -> ConfigError:
    return ConfigError(
        "memory ran out while two made-up prompts with three answers each were computed, which "
        f"shows if answers may share a prompt: {first_line(error)}",
        fix="end other programs that use this memory (nvidia-smi names those on a GPU), use "
        "model.dtype: bfloat16 or a smaller model; sample.backend: vllm and train.forward: "
        "separate do without this",
    )


def _picture(width: int, height: int) -> Image.Image:
    """A picture whose rows and columns differ."""
    across = Image.linear_gradient("L").rotate(90).resize((width, height))
    down = Image.linear_gradient("L").resize((width, height))
    return Image.merge("RGB", (across, down, Image.radial_gradient("L").resize((width, height))))


def _answers(vlm: Vlm, seed: int) -> list[list[int]]:
    """Random tokens that are neither images nor ends; each answer then ends."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = int(base_model(vlm.model).config.get_text_config().vocab_size)
    allowed = torch.ones(vocabulary)
    allowed[[t for t in (*vlm.image_token_ids, *vlm.eos_token_ids) if t < vocabulary]] = 0
    end = vlm.eos_token_ids[0]
    return [
        [*torch.multinomial(allowed, count - 1, generator=generator).tolist(), end]
        for count in ANSWER_TOKENS
    ]


@contextmanager
def _as_transformers_computes(vlm: Vlm) -> Iterator[None]:
    """Its eager formula where the text model has our attention because SDPA would not do."""
    model: Any = base_model(vlm.model)
    text = model.config.get_text_config()
    before = text._attn_implementation
    if vlm.layers.changed_scores:
        model.set_attn_implementation({"text_config": "eager"})
    try:
        yield
    finally:
        if vlm.layers.changed_scores:
            model.set_attn_implementation({"text_config": before})


def _plain_runs(
    vlm: Vlm, prompts: Sequence[EncodedPrompt], answers: Sequence[Sequence[Sequence[int]]]
) -> list[Tensor]:
    """(B, N) log-probabilities in nats from each run; in fp32 one run, as padding changes nothing.

    A layer with a state has one kernel for many tokens and another for a single one, as the packed
    decoding uses it: in bf16 they round differently, so transformers' own decoding is a run, too.
    """
    if vlm.dtype == torch.float32:
        return [_plain(vlm, prompts, answers, PADDINGS[0])]
    runs = [_plain(vlm, prompts, answers, padding) for padding in PADDINGS]
    if vlm.layers.recurrent:
        rows = [force_list(vlm, *one) for one in zip(prompts, answers, strict=True)]
        runs.append(torch.tensor(rows, dtype=torch.float64))
    return runs


def _plain(
    vlm: Vlm,
    prompts: Sequence[EncodedPrompt],
    answers: Sequence[Sequence[Sequence[int]]],
    padding: int,
) -> Tensor:
    """(B, N) log-probabilities in nats of each answer, by a forward of its own."""
    rows = [
        [plain_logprob(vlm, prompt, answer, padding) for answer in some]
        for prompt, some in zip(prompts, answers, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float64)


@torch.no_grad()
def plain_logprob(
    vlm: Vlm, prompt: EncodedPrompt, answer: Sequence[int], padding: int = 0
) -> float:
    """Log-probability in nats of an answer under the transformers model's own plain forward."""
    model: Any = base_model(vlm.model)
    ids = torch.cat(
        [torch.full((padding,), vlm.pad_token_id), prompt.input_ids, torch.tensor(answer)]
    )[None]
    mask = torch.ones_like(ids)
    mask[:, :padding] = 0
    types = prompt.token_types
    if types is not None:
        ends, other = (padding, len(answer)), vlm.layers.answer_type
        types = torch.nn.functional.pad(types, ends, value=other)[None].to(vlm.device)
    tensors = cast_tensors(over_row(prompt.tensors, padding, len(answer)), vlm.dtype)
    takes = inspect.signature(model.forward).parameters
    logits = model(
        input_ids=ids.to(vlm.device),
        attention_mask=mask.to(vlm.device),
        use_cache=False,
        **({"logits_to_keep": len(answer) + 1} if "logits_to_keep" in takes else {}),
        **type_arguments(model, types),
        **{name: value.to(vlm.device) for name, value in tensors.items()},
    ).logits[0, -len(answer) - 1 : -1]
    chosen = torch.tensor(answer, device=vlm.device)[:, None]
    logps = logits.float().gather(1, chosen).squeeze(1) - logits.float().logsumexp(-1)
    return float(logps.double().sum())
