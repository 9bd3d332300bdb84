"""Reference log-probabilities: once a list, with the forward that training uses, then cached.

They hold for every epoch, method and ablation on the same lists and base. They are never taken
from the sampler, whose numerics differ.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from perpo_pipeline.artifacts import Recipe, Version, Writer
from perpo_pipeline.stage import Run, make
from perpo_pipeline.train.lists import pack_rows
from perpo_pipeline.train.shared_prefix import reference_logps

if TYPE_CHECKING:
    from perpo_pipeline.models import Vlm

STAGE_VERSION = 1
LISTS_PER_PART = 512


def make_reference(
    run: Run, vlm: "Vlm", preferences: Version, prompts: Mapping[str, Any],
    model_settings: Mapping[str, Any], *, batch_size: int, place: Any,
) -> Version:  # fmt: skip
    """Compute (or find) the reference log-probabilities of `preferences`, aligned with its rows."""
    recipe = Recipe("reference", preferences.variant, "reference", STAGE_VERSION,
                    {**model_settings, "batch_size": batch_size},
                    {"preferences": preferences})  # fmt: skip

    def work(writer: Writer) -> Mapping[str, Any]:
        rows = preferences.table(columns=["prompt_id", "completion_token_ids"]).to_pylist()
        starts = range(0, len(rows), LISTS_PER_PART)
        for index, start in enumerate(run.progress(starts, "reference log-probabilities")):
            if not writer.has_part(index):
                part = rows[start : start + LISTS_PER_PART]
                writer.write_part(index, _logps_of(vlm, part, prompts, model_settings, batch_size))
        return {"lists": len(rows)}

    return make(run, recipe, work, out=place)


def _logps_of(
    vlm: "Vlm", rows: Sequence[Mapping[str, Any]], prompts: Mapping[str, Any],
    model_settings: Mapping[str, Any], batch_size: int,
) -> list[dict[str, Any]]:  # fmt: skip
    found: list[dict[str, Any]] = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        pairs = [(prompts[row["prompt_id"]], row["completion_token_ids"]) for row in batch]
        packed = pack_rows(vlm, pairs, model_settings["preprocess"])
        (logps,) = reference_logps(vlm.model, [packed])
        for row, values in zip(batch, logps.tolist(), strict=True):
            kept = values[: len(row["completion_token_ids"])]
            found.append({"prompt_id": row["prompt_id"], "ref_logps": kept})
    return found
