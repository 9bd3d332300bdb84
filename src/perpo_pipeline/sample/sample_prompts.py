"""`perpo sample`: prompts and a model -> the samples artifact, in parts of whole prompts.

A part is sampled as a whole and written when it is whole, whatever the number of processes and
restarts: batches are composed the same way again, so the same seed gives the same rows.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from perpo_pipeline.config.fingerprints import counted_settings
from perpo_pipeline.config.run import RunConfig, SampleConfig
from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.rewards.scoring import TRUTH_COLUMNS
from perpo_pipeline.run import Run, make
from perpo_pipeline.sample.backend import BackendSetup
from perpo_pipeline.sample.parts import PROMPT_COLUMNS, PartSampler, Row
from perpo_pipeline.sample.progress import SampleProgress
from perpo_pipeline.store.artifacts import Recipe, Version, Writer
from perpo_pipeline.store.schemas import SAMPLES
from perpo_pipeline.vlm.families import unusual_boxes
from perpo_pipeline.vlm.files import ResolvedModel
from perpo_pipeline.vlm.inputs import identify_model, model_notes

STAGE_VERSION = 2


def sample(run: Run, split: str) -> Version:
    """Write N completions of every prompt of one split.

    A prompt that cannot be sampled goes to `errors` with its reason; more than `max_errors` of
    them and no other part is begun, and InputError raised. What is done is kept; the same command
    tries those that failed again and goes on.
    """
    config = run.config.sample
    prompts = run.latest("prompts", split)
    inputs = {"prompts": prompts}
    if "adapter" in run.inputs:
        inputs["adapter"] = run.latest("adapter")
    resolved, model_settings = identify_model(run.config.model, run.scratch)
    backend = choose_backend(config, run.config.model.device)
    found = {"backend": backend, "seed": run.config.seed, **model_settings}
    recipe = Recipe(
        "samples",
        split,
        "sample",
        STAGE_VERSION,
        counted_settings("samples", config, found),
        inputs,
        notes=model_notes(run.config.model),
    )
    setup = BackendSetup(
        run.config.model,
        resolved,
        model_settings,
        config.model_copy(update={"backend": backend}),
        run.scratch,
        adapter=inputs["adapter"].path if "adapter" in inputs else None,
    )

    def work(writer: Writer) -> Mapping[str, Any]:
        _check(run.config)
        table = prompts.table(columns=[*PROMPT_COLUMNS, *TRUTH_COLUMNS[1:]])
        _warn_of_boxes(run, split, resolved, table)
        parts = _Parts(writer, table, config.prompts_per_part)
        pending = parts.pending()
        failed = _Failures(config.max_errors, str(writer.path))
        todo = sum(part.num_rows for part in pending.values())
        progress = SampleProgress(run, split, table.num_rows, done=table.num_rows - todo)
        note = partial(_note, run, writer)
        with closing(progress):
            for index, rows in _sample_parts(
                setup, run.config.seed, pending, progress, note, failed
            ):
                failed.add(parts.write(index, rows))
        failed.check()
        return {"prompts": table.num_rows, "failed": failed.count}

    version = make(run, recipe, work, out=run.out)
    _tell_failures(run, version, config.max_errors)
    return version


def _note(run: Run, writer: Writer, notes: Mapping[str, Any]) -> None:
    """Say and record what a backend has to tell, each thing once."""
    for name, what in notes.items():
        if writer.learned.get(name) != what:
            writer.note(name, what)
            run.say(f"sample: {what}")


def _tell_failures(run: Run, version: Version, allowed: int) -> None:
    failed, prompts = version.manifest["counts"]["failed"], version.manifest["counts"]["prompts"]
    if not failed:
        return
    first = version.table("errors").to_pylist()[0]
    told = (
        f"{failed} of {prompts} prompts could not be sampled, for instance {first['prompt_id']}: "
        f"{first['reason']}"
    )
    if failed > allowed:  # it was made when more were allowed
        raise InputError(
            f"{told} (max_errors {allowed})",
            where=str(version.path),
            fix="remove this directory to sample all anew, or raise max_errors",
        )
    run.say(f"sample {version.variant}: {told} (all: {version.path}/errors-*.parquet)")


def _warn_of_boxes(run: Run, split: str, resolved: ResolvedModel, prompts: pa.Table) -> None:
    from perpo_pipeline.vlm.families import family_of

    doubt = unusual_boxes(family_of(resolved), run.config.model)
    if doubt and "grounding" in prompts["task"].to_pylist():
        run.say(f"sample {split}: {doubt}")


def choose_backend(config: SampleConfig, device: str) -> str:
    """Resolve `auto`: vLLM on CUDA where it is installed, else transformers."""
    if config.backend != "auto":
        return config.backend
    if device == "cpu" or importlib.util.find_spec("vllm") is None:
        return "transformers"
    import torch

    return "vllm" if torch.cuda.is_available() else "transformers"


def _check(config: RunConfig) -> None:
    sample = config.sample
    if sample.engine == "ray":
        from perpo_pipeline.sample.ray_engine import check_settings

        check_settings(config)
    elif sample.num_actors is not None:
        raise ConfigError(
            "num_actors is for engine ray, and the engine is local",
            fix="set sample.engine to ray (--set sample.engine=ray)",
        )
    elif sample.backend == "openai" and sample.num_gpus > 1:
        raise ConfigError(
            "num_gpus has no meaning for the openai backend: the server has the GPUs",
            fix="leave it out; sample.concurrency is requests at a time",
        )


def _sample_parts(
    setup: BackendSetup,
    run_seed: int,
    pending: Mapping[int, pa.Table],
    progress: "SampleProgress",
    note: Callable[[Mapping[str, Any]], None],
    failed: "_Failures",
) -> Iterator[tuple[int, list[Row]]]:
    """The rows of every part, as they come, until too many failed; backends' notes to `note`."""
    if not pending:
        return
    elsewhere = _sample_elsewhere(setup, run_seed, pending, progress, failed)
    if elsewhere is not None:
        progress.begin()
        for index, rows, notes in elsewhere:
            note(notes)
            progress.preview(pending[index].select(TRUTH_COLUMNS).to_pylist(), rows)
            yield index, rows
        return
    sampler = PartSampler(setup, run_seed)
    note(sampler.backend.notes())
    progress.begin()
    for index, chunk in pending.items():
        if failed.too_many:
            return
        rows = sampler.sample(chunk.to_pylist(), progress.tell)
        note(sampler.backend.notes())
        yield index, rows


def _sample_elsewhere(
    setup: BackendSetup,
    run_seed: int,
    pending: Mapping[int, pa.Table],
    progress: "SampleProgress",
    failed: "_Failures",
) -> Iterator[tuple[int, list[Row], dict[str, Any]]] | None:
    """Rows and notes of every part from actors or processes; None where this process samples."""
    if setup.sample.engine == "ray":
        from perpo_pipeline.sample.ray_engine import sample_with_ray

        return sample_with_ray(
            setup,
            run_seed,
            pending,
            tell=progress.show,
            should_stop=lambda: failed.too_many,
            say=progress.run.say,
        )
    processes = min(setup.sample.num_gpus, len(pending))
    if processes <= 1:
        return None
    from perpo_pipeline.sample.processes import sample_in_processes

    return sample_in_processes(
        setup,
        run_seed,
        pending,
        processes,
        tell=progress.show,
        should_stop=lambda: failed.too_many,
    )


@dataclass(frozen=True)
class _Parts:
    """The parts of a version: what of each there is, and what is still to be sampled."""

    writer: Writer
    prompts: pa.Table
    size: int

    def pending(self) -> dict[int, pa.Table]:
        """The prompts of each part that have no rows yet: all, or those that failed before."""
        found = {}
        for index, start in enumerate(range(0, self.prompts.num_rows, self.size)):
            part = self.prompts.slice(start, self.size)
            if self.writer.has_part(index):
                there = self.writer.read_part(index, ["prompt_id"])["prompt_id"]
                part = part.filter(pc.invert(pc.is_in(part["prompt_id"], pc.unique(there))))
            if part.num_rows:
                found[index] = part
        return found

    def write(self, index: int, found: Sequence[Row]) -> list[Row]:
        """Write what was found of a part beside what is there; returns what failed."""
        errors = [row for row in found if "reason" in row]
        rows = [row for row in found if "reason" not in row]
        is_again = self.writer.has_part(index)
        if is_again:
            part = self.prompts.slice(index * self.size, self.size)["prompt_id"].to_pylist()
            places = {prompt_id: place for place, prompt_id in enumerate(part)}
            rows += self.writer.read_part(index, SAMPLES.columns.names).to_pylist()
            rows.sort(key=lambda row: (places[row["prompt_id"]], row["sample_id"]))
        if errors or is_again:
            self.writer.write_part(index, errors, table="errors")
        self.writer.write_part(index, rows)
        return errors


@dataclass
class _Failures:
    """Prompts that failed in this run."""

    allowed: int
    where: str
    count: int = 0
    first: Row | None = None

    @property
    def too_many(self) -> bool:
        return self.count > self.allowed

    def add(self, errors: Sequence[Row]) -> None:
        """These failed."""
        self.count += len(errors)
        self.first = self.first or next(iter(errors), None)

    def check(self) -> None:
        """Raise InputError once there are more than allowed."""
        if not self.too_many or self.first is None:
            return
        raise InputError(
            f"{self.count} prompts cannot be sampled (max_errors {self.allowed}), "
            f"for instance {self.first['prompt_id']}: {self.first['reason']}",
            where=self.where,
            fix="repair it and run the same command, which tries these again and goes on (changed "
            "data needs `perpo prepare` first), or raise max_errors",
        )
