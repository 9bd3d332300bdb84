"""What the tiny model of each family shows: `python -m tools.manual.models_table --run`.

Every family has one list of answers behind one long prompt. Its log-probabilities, the gradients of
a LoRA adapter and the time are computed with the shared prefix and with one row per answer.
"""

import importlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor

from perpo_pipeline.train.scope import lora_config
from perpo_pipeline.train.separate_rows import separate_lists, separate_logps
from perpo_pipeline.train.shared_prefix import CompletionList, pack_lists, packed_logps
from perpo_pipeline.vlm.attention import use_shared_prefix_attention
from perpo_pipeline.vlm.layers import PROMPT_IS_BLOCK
from perpo_pipeline.vlm.models import Vlm, base_model
from perpo_pipeline.vlm.recurrent import use_recurrent_steps

TESTS = Path(__file__).parents[2] / "tests"  # where the tiny models are
PROMPT, ANSWERS, LENGTH = 200, 10, 12  # tokens, answers, tokens of each
REPEATED = 3  # timings, of which the median counts
Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Facts:
    """What was found for one family.

    `sees` are the kinds of its text layers; `logps` the largest difference of a summed
    log-probability in nats, `gradients` the largest relative difference of a LoRA weight's
    gradient, `merged` the largest difference in nats after the adapter is merged; `speed` how many
    times less processor time the shared prefix takes, forward and backward; `prompt` its tokens.
    `loads`: whether perpo can load its processor: `yes`, `with torchvision`, or `no`.
    """

    sees: list[str]
    logps: float
    gradients: float
    merged: float
    speed: float
    prompt: int
    loads: str


def run(model_types: Sequence[str]) -> dict[str, Any]:
    """The facts of these families, and with which versions they were found."""
    import peft
    import transformers

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        found = {}
        for model_type in model_types:
            folder = Path(root) / model_type
            folder.mkdir()
            found[model_type] = asdict(measure(model_type, folder))
            print(model_type, found[model_type], flush=True)
    versions = {"torch": torch, "transformers": transformers, "peft": peft}
    return {
        "versions": {name: str(library.__version__) for name, library in versions.items()},
        "models": found,
    }


def measure(model_type: str, folder: Path) -> Facts:
    """Both ways on the family's tiny model, which is written into `folder`."""
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    tiny_all = importlib.import_module("tiny_all")
    vlm: Vlm = tiny_all.tiny_vlm(model_type, folder)
    prompt = tiny_all.long_prompt(model_type, vlm, PROMPT)
    answers = torch.randint(
        10, 200, (ANSWERS, LENGTH), generator=torch.Generator().manual_seed(0)
    ).tolist()
    lists = [CompletionList(prompt, answers)]
    _add_adapter(vlm)
    separate, packed = separate_lists(vlm, lists), pack_lists(vlm, lists)

    def plain() -> Tensor:
        return separate_logps(vlm.model, separate)

    def shared() -> Tensor:
        return packed_logps(vlm.model, packed)

    expected, plain_gradients, plain_s = _timed(vlm, plain)
    inner = base_model(vlm.model)
    use_recurrent_steps(inner)
    use_shared_prefix_attention(inner, flex=False)
    logps, gradients, shared_s = _timed(vlm, shared)
    vlm.model = vlm.model.merge_and_unload()  # type: ignore[operator]
    with torch.no_grad():
        merged = shared()
    return Facts(
        sees=_kinds(vlm),
        logps=float((logps - expected).abs().max()),
        gradients=_difference(gradients, plain_gradients),
        merged=float((merged - expected).abs().max()),
        speed=round(plain_s / shared_s, 1),
        prompt=prompt.num_tokens,
        loads=_loads(model_type),
    )


def _loads(model_type: str) -> str:
    """Whether the library has an image processor that reads with PIL, and what builds it.

    Without torchvision in this environment; `ImportError` says that something needs it.
    """
    from transformers import CONFIG_MAPPING, PROCESSOR_MAPPING
    from transformers.models.auto import image_processing_auto

    names: Any = vars(image_processing_auto)["IMAGE_PROCESSOR_MAPPING_NAMES"].get(model_type)
    if names and "pil" not in names:
        return "no"
    config: Any = CONFIG_MAPPING[model_type]
    try:
        getattr(PROCESSOR_MAPPING.get(config, None), "get_attributes", None)
    except ImportError:
        return "with torchvision"
    return "yes"


def _add_adapter(vlm: Vlm) -> None:
    """LoRA on the language model that is not zero."""
    torch.manual_seed(3)
    vlm.model = get_peft_model(vlm.model, lora_config(vlm, rank=4, alpha=8)).train()
    for name, parameter in vlm.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)


def _timed(vlm: Vlm, compute: Callable[[], Tensor]) -> tuple[Tensor, Gradients, float]:
    """Log-probabilities, the gradients of their sum, and processor seconds; once to warm up."""
    seconds = []
    for _ in range(1 + REPEATED):
        vlm.model.zero_grad()
        start = time.process_time()
        logps = compute()
        logps.sum().backward()  # type: ignore[no-untyped-call]
        seconds.append(time.process_time() - start)
    named = vlm.model.named_parameters()
    gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}
    return logps.detach(), gradients, median(seconds[1:])


def _difference(ours: Gradients, plain: Gradients) -> float:
    """The largest norm of a difference, relative to that of the separate rows' gradient."""
    if ours.keys() != plain.keys():
        raise RuntimeError(f"other weights are trained: {sorted(ours.keys() ^ plain.keys())}")
    return max(float((ours[n] - plain[n]).norm() / plain[n].norm()) for n in plain)


def _kinds(vlm: Vlm) -> list[str]:
    """What the text layers see, in the words of the page."""
    reaches = vlm.layers.reaches.values()
    block = "the prompt" if base_model(vlm.model).config.model_type in PROMPT_IS_BLOCK else "images"
    found = {
        "all earlier tokens": any(not (r.window or r.chunk) for r in reaches),
        "windows": any(r.window for r in reaches),
        f"{block} both ways": any(r.ahead for r in reaches),
        "states": bool(vlm.layers.recurrent),
    }
    return [name for name, is_so in found.items() if is_so]
