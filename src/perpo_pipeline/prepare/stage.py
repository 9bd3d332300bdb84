"""`perpo prepare`: one split of the run's data -> the prompts artifact."""

from collections.abc import Mapping
from typing import Any

from perpo_pipeline.artifacts import Recipe, Version, Writer
from perpo_pipeline.boxes import get_box_format
from perpo_pipeline.prepare.sources import JsonlSource
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.stage import Run, make

STAGE_VERSION = 2
PROMPTS_PER_PART = 1024


def prepare(run: Run, split: str) -> Version:
    """Write the prompts of one split; raises `PerpoError` on a bad source."""
    source = run.config.prepare.get(split)
    if source is None:
        raise ConfigError(
            f"no split '{split}' under `prepare`", fix=f"choose one of {list(run.config.prepare)}"
        )
    if isinstance(source, JsonlSource):
        from perpo_pipeline.prepare.jsonl import read_jsonl

        rows, facts = read_jsonl(source, split, get_box_format(run.config.model.box_format))
        settings: dict[str, Any] = {**source.model_dump(mode="json", exclude={"path"}), **facts}
    else:
        from perpo_pipeline.prepare.testbed import render_prompts, testbed_settings

        settings = testbed_settings(run.config.seed, split, source.num_prompts)
        rows = render_prompts(settings, split)
    recipe = Recipe("prompts", split, "prepare", STAGE_VERSION, {"split": split, **settings})

    def work(writer: Writer) -> Mapping[str, Any]:
        starts = range(0, len(rows), PROMPTS_PER_PART)
        for index, start in enumerate(run.progress(starts, f"prepare {split}")):
            if not writer.has_part(index):
                chunk = [rows[i] for i in range(start, min(start + PROMPTS_PER_PART, len(rows)))]
                writer.write_part(index, chunk)
        return {"prompts": len(rows), "left_out": settings.get("left_out_by_per_dataset", 0)}

    return make(run, recipe, work, out=run.out)
