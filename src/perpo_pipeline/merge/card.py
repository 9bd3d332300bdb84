"""The model card of a merged model: what it is, what made it, how good it was, how to load it.

It is meant to be published: identities and fingerprints, no paths of the machine.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from perpo_pipeline.answers.boxes import get_box_format
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.evaluate.printing import metrics_table
from perpo_pipeline.merge.evaluations import Evaluation
from perpo_pipeline.store.artifacts import Json, Version
from perpo_pipeline.store.lineage import Traced

PAPER = "https://arxiv.org/abs/2502.04371"
PIPELINE_TAG = "image-text-to-text"
# What is told of the artifacts before the adapter; other settings may name places on a disk.
SHOWN = (
    "source",
    "split",
    "splits",
    "datasets",
    "num_prompts",
    "per_dataset",
    "backend",
    "num_samples",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "max_new_tokens",
    "seed",
    "reward",
    "strategy",
    "min_margin",
    "max_margin",
    "list_size",
    "drop_unparsed",
    "equal_datasets",
    "max_lists",
)
ABOUT = {
    "adapter": "This model",
    "base": "Its base, on the same prompts",
    "answers": "Answers that were given as a file: by which model, nothing here can say",
}


def model_card(
    record: Mapping[str, Any],
    adapter: Version,
    lineage: Iterable[Traced],
    evaluations: Sequence[Evaluation],
) -> str:
    """README.md, with the hub's YAML header; `record` is what stands in perpo_merge.json."""
    sections = [
        _header(record, adapter),
        _title(record, adapter),
        _base(record),
        _use(record, adapter),
        _data(lineage),
        _training(adapter),
        _evaluation(evaluations),
        _provenance(record, adapter),
    ]
    return "\n\n".join(sections) + "\n"


def _header(record: Mapping[str, Any], adapter: Version) -> str:
    """`base_model` is an id on a hub: a folder has none."""
    fields = {
        "base_model": None if record["base_is_directory"] else record["base_model"],
        "library_name": "transformers",
        "pipeline_tag": PIPELINE_TAG,
        "tags": list(dict.fromkeys(["perpo", adapter.manifest["settings"]["method"]])),
    }
    known = {name: value for name, value in fields.items() if value is not None}
    return f"---\n{yaml.safe_dump(known, sort_keys=False)}---"


def _title(record: Mapping[str, Any], adapter: Version) -> str:
    method = adapter.manifest["settings"]["method"]
    return (
        f"# {record['base_model'].rsplit('/', 1)[-1]}, {adapter.variant}\n"
        f"A vision-language model after training by `{method}` with [PerPO's pipeline]({PAPER}): "
        "the trained weights are folded into the base's, and all other files are the base's own."
    )


def _base(record: Mapping[str, Any]) -> str:
    hint = (
        "\n\nThe base was a folder. If it is a copy of a model on a hub, name that one as "
        "`base_model` in the header of this file."
        if record["base_is_directory"]
        else ""
    )
    return (
        f"## Base\n`{record['base_model']}`, exactly `{record['base_identity']}` "
        "(`id@commit` on a hub, or a sha256 over all its files). Its licence holds for this model "
        f"as well. Weights are stored in {record['dtype']}.{hint}"
    )


def _use(record: Mapping[str, Any], adapter: Version) -> str:
    settings, notes = adapter.manifest["settings"], adapter.manifest["notes"]
    vllm = VLLM_SNIPPET.format(dtype=record["dtype"])
    sections = ["## How to load it", TRANSFORMERS_SNIPPET, vllm]
    if settings["preprocess"] == "pad":
        sections.append(
            "In training every image was padded to a centred square with the processor's mean "
            "colour before it came to the processor (`preprocess: pad`): do the same."
        )
    if name := notes.get("box_format"):
        sections.append(
            f"Boxes: format `{name}`, frame `{notes['box_frame']}`{_question(name)} (see the "
            "pipeline's README, 'Boxes')."
        )
    return "\n\n".join(sections)


def _question(box_format: str) -> str:
    try:
        return f"; asked for as `{get_box_format(box_format).instruction}`"
    except ConfigError:  # the user's own format, not at hand any more
        return ""


def _data(lineage: Iterable[Traced]) -> str:
    rows = [
        (traced.artifact, traced.variant, f"`{traced.fingerprint}`", *_told(traced.version))
        for traced in lineage
        if traced.artifact != "adapter"
    ]
    return (
        "## Data\nEvery artifact behind the training lists, by its fingerprint (a hash of its "
        "settings and of what it was made from):\n\n"
        + _table(("artifact", "variant", "fingerprint", "rows", "settings"), rows)
    )


def _told(version: Version | None) -> tuple[str, str]:
    if version is None:
        return "-", "(no longer there)"
    settings: Json = version.manifest["settings"]
    shown = {k: settings[k] for k in SHOWN if settings.get(k) not in (None, [], {})}
    return f"{version.manifest['rows']:,}", ", ".join(f"{k} {v}" for k, v in shown.items())


def _training(adapter: Version) -> str:
    manifest = adapter.manifest
    settings = {k: v for k, v in manifest["settings"].items() if k != "model"}
    counts = ", ".join(f"{value} {name}" for name, value in manifest["counts"].items())
    text = yaml.safe_dump(settings, sort_keys=False)
    return f"## Training\n{counts}; made at {manifest['created_at']}.\n```yaml\n{text}```"


def _evaluation(evaluations: Sequence[Evaluation]) -> str:
    """The metrics as `perpo eval` prints them."""
    if not evaluations:
        return "## Evaluation\nNo metrics of this model were at hand when it was merged."
    blocks = [
        f"{ABOUT[found.of]} (`{found.name}`, metrics `{found.fingerprint}`):\n"
        f"```\n{metrics_table(found.rows)}\n```"
        for found in evaluations
    ]
    return "\n\n".join(
        ["## Evaluation\n`perpo eval` decodes greedily; shares are in per cent.", *blocks]
    )


def _provenance(record: Mapping[str, Any], adapter: Version) -> str:
    trained, merged = adapter.manifest["packages"], record["packages"]
    rows = [
        (name, trained.get(name, "-"), merged.get(name, "-"))
        for name in sorted({*trained, *merged})
    ]
    rows.append(("git commit", adapter.manifest["git_commit"] or "-", record["git_commit"] or "-"))
    return (
        f"## Made with\nAdapter `{adapter.fingerprint}`; merged at {record['made_at']}.\n\n"
        + _table(("package", "training", "merging"), rows)
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


TRANSFORMERS_SNIPPET = """\
```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

name = "FOLDER or the id of this repository"
model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto").eval()
processor = AutoProcessor.from_pretrained(name)
image = Image.open("photo.jpg").convert("RGB")
content = [{"type": "image", "image": image}, {"type": "text", "text": "What is in the image?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
).to(model.device, model.dtype)
answer = model.generate(**inputs, max_new_tokens=64, do_sample=False)
print(processor.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```
Training read its images with the processor's PIL version; torchvision's pixels differ a little."""

# Without --dtype vLLM computes float32 models in 16 bits.
VLLM_SNIPPET = """\
```
vllm serve FOLDER --dtype {dtype} --generation-config vllm \\
  --mm-processor-kwargs '{{"use_fast": false}}'
```"""
