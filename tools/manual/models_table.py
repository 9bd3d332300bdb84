"""Writes the tables of docs/models.md: what a run over tiny models found for each family.

`python -m tools.manual.models_table` writes them from models.json, the record of the last run,
and from `FAMILIES`; `--run` computes models.json anew first (about a minute), and
`--run MODEL_TYPE ...` those families alone, if the libraries are still those of the record.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perpo_pipeline.vlm.families import FAMILIES, Family

RECORD = Path(__file__).with_name("models.json")
PAGE = Path(__file__).parents[2] / "docs" / "models.md"
TOLERANCE = 1e-4  # nats of a log-probability; relative for a gradient

# model_type -> (thinking, who says so); the others' templates were not read
THINKING = {
    "qwen3_5": ("opens a thought, unless `enable_thinking: false`", "tinker-cookbook's renderer"),
    "qwen3_5_moe": ("as Qwen3.5", "the same"),
    "gemma4": (
        "off, unless `enable_thinking: true`; off is an empty thought for 26B and 31B",
        "Ollama, pull request 15560",
    ),
    "glm4v": ("GLM-4.1V-9B-Thinking is a reasoning model", "its README"),
}
# What tests/with_vllm found, with the real vLLM on the CPU; the others were not tried
VLLM = {
    **dict.fromkeys(
        (
            *("llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl"),
            *("qwen3_vl", "qwen3_vl_moe", "internvl"),
        ),
        "yes",
    ),
    "qwen3_5": "yes, in bf16",
    "gemma3": "refused on a CPU",
}
TORCHVISION_ONLY = (
    "exact on its tiny model, but not loaded: transformers has its image processor for torchvision "
    "only, and perpo prepares images with PIL"
)
# model_type, name, reason
OTHERS = (
    (
        "llama4",
        "Llama 4",
        "separate rows: its head is inside its language model, and its layers without rotary "
        "positions scale by the place in the row",
    ),
    (
        "paligemma",
        "PaliGemma 2 (Gemma 2 as text model)",
        "separate rows, by proof: its forward does not take one mask per kind of layer",
    ),
    ("jamba", "text models with Mamba 1", "separate rows: these layers ignore a given state"),
    (
        "mllama",
        "Llama 3.2 Vision",
        "separate rows, which are exact: some of its layers look at images instead of tokens; all "
        "prompts must have the same number of images",
    ),
    ("kimi_k25", "Kimi-K2.5", TORCHVISION_ONLY),
    (
        "minicpmv4_6",
        "MiniCPM-V 4.6",
        "not loaded: its processor cannot be built without its video part, which has no PIL "
        "version",
    ),
    (
        "gemma3n",
        "Gemma 3n",
        "exact on its tiny model with another image tower, but not loaded: its own tower needs "
        "the package timm, which needs torchvision",
    ),
    (
        "florence2",
        "Florence-2",
        "refused: an encoder reads the prompt and a decoder writes the answer, which does not "
        "continue the prompt",
    ),
)

EXACT = (
    "`model_type`",
    "family",
    "its layers see",
    "log-probability, nats",
    "gradient, relative",
    "speed",
    "after merging, nats",
    "images of the tests",
    "box format, frame (source)",
    "vLLM draws as training",
    "vLLM serves LoRA",
    "thinking (source)",
)


def main(arguments: list[str]) -> None:
    """Write the tables; with `--run`, compute its figures first."""
    if arguments and (arguments[0] != "--run" or not set(arguments[1:]) <= set(FAMILIES)):
        raise SystemExit("usage: python -m tools.manual.models_table [--run [MODEL_TYPE ...]]")
    if arguments:
        from tools.manual.models_run import run

        found = run(arguments[1:] or list(FAMILIES))
        if arguments[1:]:
            found = added(read_record(), found)
        RECORD.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(models_page(read_record(), page), encoding="utf-8")


def read_record() -> dict[str, Any]:
    """What the last run found."""
    return dict(json.loads(RECORD.read_text(encoding="utf-8")))


def added(record: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """The record with what a run over some families found; raises SystemExit for other versions."""
    if record["versions"] != found["versions"]:
        raise SystemExit(f"models.json has {record['versions']}: run over all families (--run)")
    return {"versions": record["versions"], "models": record["models"] | found["models"]}


def models_page(record: Mapping[str, Any], page: str) -> str:
    """The page with new tables: families that are exact in the first, all others with a reason.

    `page` has a line `<!-- NAME: begin -->` and one `<!-- NAME: end -->` around each table.
    """
    models = record["models"]
    failed = {name: fault for name in FAMILIES if (fault := fault_of(models.get(name))) is not None}
    rows = [_row(name, FAMILIES[name], models[name]) for name in FAMILIES if name not in failed]
    others = [
        *((f"`{name}`", FAMILIES[name].label, fault) for name, fault in failed.items()),
        *((f"`{name}`", label, reason) for name, label, reason in OTHERS),
    ]
    exact = f"{_table(EXACT, rows)}\n\n{_conditions(record, len(rows))}"
    page = _between("exact", exact, page)
    return _between("others", _table(("`model_type`", "model", "reason"), others), page)


def _conditions(record: Mapping[str, Any], passing: int) -> str:
    from tools.manual.models_run import ANSWERS, LENGTH, PROMPT

    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    ratio = ANSWERS * (PROMPT + LENGTH) / (PROMPT + ANSWERS * LENGTH)
    return (
        f"{passing} families. A prompt of about {PROMPT} tokens, {ANSWERS} answers of {LENGTH} "
        f"tokens, float32, one CPU thread, {versions}. Separate rows have {ratio:.1f} times as "
        f"many tokens. At most {_figure(TOLERANCE)} may differ."
    )


def _between(name: str, text: str, page: str) -> str:
    """The page with `text` between the two marks of this name."""
    begin, end = (f"<!-- {name}: {place} -->\n" for place in ("begin", "end"))
    before, rest = page.split(begin)
    return f"{before}{begin}\n{text}\n\n{end}{rest.split(end)[1]}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def fault_of(facts: Mapping[str, Any] | None) -> str | None:
    """Why a family does not belong in the first table; None if it does."""
    if facts is None:
        return "not in the last run"
    if facts["loads"] == "no":
        return TORCHVISION_ONLY
    words = {"logps": "log-probabilities", "gradients": "gradients"}
    found = [
        f"{what} differ by {_figure(facts[name])}"
        for name, what in words.items()
        if not facts[name] < TOLERANCE
    ]
    return " and ".join(found) or None


def _row(model_type: str, family: Family, facts: Mapping[str, Any]) -> list[str]:
    boxes = "-"
    if family.box_format is not None:
        boxes = f"`{family.box_format}`, `{family.box_frame}` ({family.box_source})"
    thinking = "{} ({})".format(*THINKING[model_type]) if model_type in THINKING else "-"
    return [
        f"`{model_type}`",
        family.label,
        ", ".join(facts["sees"]),
        _figure(facts["logps"]),
        _figure(facts["gradients"]),
        f"{facts['speed']:.1f}x",
        _figure(facts["merged"]),
        "own" if family.own_processor else _ours(facts["loads"]),
        boxes,
        VLLM.get(model_type, "-"),
        "yes" if family.lora_in_vllm else "no",
        thinking,
    ]


def _ours(loads: str) -> str:
    return "`ours`" if loads == "yes" else f"`ours`; loads {loads}"


def _figure(number: float) -> str:
    """One digit."""
    return f"{number:.0e}" if number else "0"


if __name__ == "__main__":
    main(sys.argv[1:])
