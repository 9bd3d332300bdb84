"""`perpo sample`: prompts and a model -> the samples artifact, in parts of whole prompts."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from perpo_pipeline.artifacts import Recipe, Version, Writer
from perpo_pipeline.config import SampleConfig
from perpo_pipeline.errors import InputError, PerpoError
from perpo_pipeline.model_inputs import encode_row, identify_model, model_notes, open_model
from perpo_pipeline.seeds import derive_seed
from perpo_pipeline.stage import Run, make

if TYPE_CHECKING:
    from perpo_pipeline.models import Vlm

STAGE_VERSION = 1
PROMPT_COLUMNS = ["prompt_id", "image", "image_sha256", "prompt"]

Row = dict[str, Any]


def sample(run: Run, split: str) -> Version:
    """Write N completions of every prompt of one split.

    A prompt that cannot be sampled goes to `errors` with its reason; more than `max_errors` of
    them and the stage fails, keeping what is done.
    """
    config, run_dir = run.config.sample, run.scratch
    prompts = run.latest("prompts", split)
    resolved, model_settings = identify_model(run.config.model, run_dir)
    settings = {
        **config.result_settings(),
        "seed": run.config.seed,
        **model_settings,
    }
    recipe = Recipe("samples", split, "sample", STAGE_VERSION, settings, {"prompts": prompts},
                    notes=model_notes(run.config.model))  # fmt: skip

    def work(writer: Writer) -> Mapping[str, Any]:
        from perpo_pipeline.sample.plain import explain

        vlm = open_model(run.config.model, resolved, model_settings, run_dir)
        if not vlm.shares_prefix:
            run.say(f"sample {split}: {explain(vlm)}")
        table = prompts.table(columns=PROMPT_COLUMNS)
        sampler = _Sampler(vlm, config, run.config.seed, model_settings["preprocess"])
        starts = range(0, table.num_rows, config.batch_size)
        bar = iter(run.progress(starts, f"sample {split} ({config.num_samples} a prompt)"))
        for index, start in enumerate(range(0, table.num_rows, config.prompts_per_part)):
            chunk = table.slice(start, config.prompts_per_part)
            _write_chunk(writer, index, chunk, sampler, bar)
        for _ in bar:  # let the bar reach its end where parts were there already
            pass
        return {"prompts": table.num_rows, "failed": sampler.failed}

    return make(run, recipe, work, out=run.out)


def _write_chunk(
    writer: Writer, index: int, chunk: pa.Table, sampler: "_Sampler", bar: Iterator[int]
) -> None:
    batch_size = sampler.config.batch_size
    errors: list[Row]
    if writer.has_part(index):
        done = set(writer.read_part(index)["prompt_id"].to_pylist())
        errors = [
            {"prompt_id": key, "reason": "it failed before; see the `errors` table"}
            for key in chunk["prompt_id"].to_pylist()
            if key not in done
        ]
        for _ in range(0, chunk.num_rows, batch_size):
            next(bar, None)
        sampler.check_errors(errors, str(writer.path))
        return
    rows: list[Row] = []
    errors = []
    for start in range(0, chunk.num_rows, batch_size):
        batch = chunk.slice(start, batch_size).to_pylist()
        rows += sampler.sample_batch(batch, errors)
        next(bar, None)
    # Nothing of this part is written if too many fail: once repaired, they are tried again.
    sampler.check_errors(errors, str(writer.path))
    if errors:
        writer.write_part(index, errors, table="errors")
    writer.write_part(index, rows)


class _Sampler:
    """Draws the completions of batches of prompts' rows."""

    def __init__(self, vlm: "Vlm", config: SampleConfig, run_seed: int, preprocess: str) -> None:
        self.vlm, self.config = vlm, config
        self.run_seed, self.preprocess = run_seed, preprocess
        self.failed = 0

    def sample_batch(self, batch: list[Row], errors: list[Row]) -> Iterator[Row]:
        """Yield SAMPLES rows, prompt by prompt; what fails is appended to `errors`."""
        from perpo_pipeline.sample.transformers_backend import sample_lists

        encoded, good = [], []
        for row in batch:
            try:
                encoded.append(encode_row(self.vlm, row, self.preprocess))
                good.append(row["prompt_id"])
            except PerpoError as error:
                errors.append({"prompt_id": row["prompt_id"], "reason": str(error)})
        seeds = [derive_seed(self.run_seed, "sample", prompt_id) for prompt_id in good]
        lists = sample_lists(
            self.vlm, encoded, seeds=seeds, num_samples=self.config.num_samples,
            temperature=self.config.temperature, max_new_tokens=self.config.max_new_tokens,
        )  # fmt: skip
        for prompt_id, seed, completions in zip(good, seeds, lists, strict=True):
            for sample_id, completion in enumerate(completions):
                yield {
                    "prompt_id": prompt_id,
                    "sample_id": sample_id,
                    "completion": completion.text,
                    "completion_token_ids": completion.token_ids,
                    "finish_reason": completion.finish_reason,
                    "seed": seed,
                    "sampler_logprob": completion.sampler_logprob,
                }

    def check_errors(self, errors: list[Row], where: str) -> None:
        """Raise `InputError` once more prompts have failed than the configuration allows."""
        self.failed += len(errors)
        if errors and self.failed > self.config.max_errors:
            first = errors[-1]
            raise InputError(
                f"{self.failed} prompts cannot be sampled (max_errors {self.config.max_errors}), "
                f"for instance {first['prompt_id']}: {first['reason']}",
                where=where, fix="repair the data and rerun `perpo prepare`, or raise max_errors",
            )  # fmt: skip
