"""Whether a run's results stand beside a table of the paper: only with its data and its models."""

from collections.abc import Iterable

GROUNDING_MODELS = (
    "llava-1.5-7b",
    "llava-v1.5-7b",
    "llava-v1.6-7b",
    "llava-v1.6-vicuna-7b",
    "llava-next-7b",
    "llava-onevision-qwen2-7b",
)
OCR_MODELS = ("llava-next-25k", "llava-next-50k")
REFCOCO = {"refcoco", "refcoco+", "refcocog"}
FOX = {"fox"}


def papers_table(model_id: str, datasets: Iterable[str]) -> str | None:
    """The paper's table with this model on these datasets (arXiv:2502.04371), None for any other.

    A model is known by its name on the hub, so a copy under another name is not.
    """
    name = model_id.rstrip("/").rpartition("/")[2].lower()
    found = {dataset.lower().partition("_")[0] for dataset in datasets}
    if found and found <= REFCOCO and name.startswith(GROUNDING_MODELS):
        return "the paper's Table 1"
    if found and found <= FOX and name.startswith(OCR_MODELS):
        return "the paper's Table 2"
    return None
