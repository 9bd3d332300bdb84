"""`perpo sample`: prompts and a model -> the samples artifact, in parts of whole prompts.

A part is sampled as a whole and written when it is whole, whatever the number of processes and
restarts: batches are composed the same way again, so the same seed gives the same rows.
"""

import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from perpo_pipeline.artifacts import Recipe, Version, Writer
from perpo_pipeline.boxes import unusual_boxes
from perpo_pipeline.config import RunConfig, SampleConfig
from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.model_files import ResolvedModel
from perpo_pipeline.model_inputs import identify_model, model_notes
from perpo_pipeline.sample.backend import Backend, BackendSetup, Failure, SampledList
from perpo_pipeline.schemas import SAMPLES
from perpo_pipeline.score import TRUTH_COLUMNS, score_samples
from perpo_pipeline.seeds import derive_seed
from perpo_pipeline.stage import Run, make

STAGE_VERSION = 2
PROMPT_COLUMNS = ["prompt_id", "image", "image_sha256", "prompt"]

Row = dict[str, Any]
# Is told prompts and their rows.
Tell = Callable[[Sequence[Row], Sequence[Row]], None]

# Settings that a backend does not look at, and that therefore do not count.
UNUSED = {
    "transformers": ("served_model",),
    "vllm": ("served_model", "batch_size"),
    "openai": ("batch_size",),
}


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
    settings = {
        **config.result_settings(),
        "backend": backend,
        "seed": run.config.seed,
        **model_settings,
    }
    for name in UNUSED[backend]:
        del settings[name]
    recipe = Recipe("samples", split, "sample", STAGE_VERSION, settings, inputs,
                    notes=model_notes(run.config.model))  # fmt: skip
    setup = BackendSetup(
        run.config.model, resolved, model_settings,
        config.model_copy(update={"backend": backend}), run.scratch,
        adapter=inputs["adapter"].path if "adapter" in inputs else None,
    )  # fmt: skip

    def work(writer: Writer) -> Mapping[str, Any]:
        _check(run.config)
        table = prompts.table(columns=[*PROMPT_COLUMNS, *TRUTH_COLUMNS[1:]])
        _warn_of_boxes(run, split, resolved, table)
        parts = _Parts(writer, table, config.prompts_per_part)
        pending = parts.pending()
        failed = _Failures(config.max_errors, str(writer.path))
        todo = sum(part.num_rows for part in pending.values())
        progress = _Progress(run, split, table.num_rows, done=table.num_rows - todo)
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
            f"{told} (max_errors {allowed})", where=str(version.path),
            fix="remove this directory to sample all anew, or raise max_errors",
        )  # fmt: skip
    run.say(f"sample {version.variant}: {told} (all: {version.path}/errors-*.parquet)")


def _warn_of_boxes(run: Run, split: str, resolved: ResolvedModel, prompts: pa.Table) -> None:
    from perpo_pipeline.models import family_of

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
        raise ConfigError("num_actors is for engine ray, and the engine is local",
                          fix="set sample.engine to ray (--engine ray)")  # fmt: skip
    elif sample.backend == "openai" and sample.num_gpus > 1:
        raise ConfigError("num_gpus has no meaning for the openai backend: the server has the GPUs",
                          fix="leave it out; sample.concurrency is requests at a time")  # fmt: skip


def open_backend(setup: BackendSetup) -> Backend:
    """Load the model, or reach the server, of the backend that the setup names."""
    if setup.sample.backend == "vllm":
        from perpo_pipeline.sample.vllm_backend import VllmBackend

        return VllmBackend(setup)
    if setup.sample.backend == "openai":
        from perpo_pipeline.sample.openai_backend import OpenAIBackend

        return OpenAIBackend(setup)
    from perpo_pipeline.sample.transformers_backend import TransformersBackend

    return TransformersBackend(setup)


class PartSampler:
    """A backend with the run's seed: the rows of a part's prompts, a call's worth at a time."""

    def __init__(self, setup: BackendSetup, run_seed: int) -> None:
        self.backend, self.run_seed = open_backend(setup), run_seed

    def sample(self, prompts: Sequence[Row], tell: Tell) -> list[Row]:
        """SAMPLES rows, and ERRORS rows of what failed; `tell` gets those of each prompt."""
        step = self.backend.prompts_a_call or len(prompts)
        rows: list[Row] = []
        for start in range(0, len(prompts), step):
            rows += self._sample_call(prompts[start : start + step], tell)
        return rows

    def _sample_call(self, prompts: Sequence[Row], tell: Tell) -> list[Row]:
        seeds = [derive_seed(self.run_seed, "sample", row["prompt_id"]) for row in prompts]
        rows: dict[int, list[Row]] = {}

        def done(index: int, found: SampledList | Failure) -> None:
            rows[index] = list(_rows_of(prompts[index]["prompt_id"], seeds[index], found))
            tell([prompts[index]], rows[index])

        self.backend.sample(prompts, seeds, done)
        return [row for index in range(len(prompts)) for row in rows[index]]


def _rows_of(prompt_id: str, seed: int, found: SampledList | Failure) -> Iterator[Row]:
    if isinstance(found, Failure):
        yield {"prompt_id": prompt_id, "reason": found.reason}
        return
    for sample_id, completion in enumerate(found.completions):
        yield {
            "prompt_id": prompt_id,
            "sample_id": sample_id,
            "completion": completion.text,
            "completion_token_ids": completion.token_ids,
            "finish_reason": completion.finish_reason,
            "seed": seed,
            "sampler_logprob": completion.sampler_logprob,
            "resized": found.resized,
        }


def count_tokens(rows: Iterable[Row]) -> int:
    """Tokens of the completions among SAMPLES and ERRORS rows."""
    return sum(len(row["completion_token_ids"]) for row in rows if "reason" not in row)


def _sample_parts(
    setup: BackendSetup, run_seed: int, pending: Mapping[int, pa.Table], progress: "_Progress",
    note: Callable[[Mapping[str, Any]], None], failed: "_Failures",
) -> Iterator[tuple[int, list[Row]]]:  # fmt: skip
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
    setup: BackendSetup, run_seed: int, pending: Mapping[int, pa.Table], progress: "_Progress",
    failed: "_Failures",
) -> Iterator[tuple[int, list[Row], dict[str, Any]]] | None:  # fmt: skip
    """Rows and notes of every part from actors or processes; None where this process samples."""
    if setup.sample.engine == "ray":
        from perpo_pipeline.sample.ray_engine import sample_with_ray

        return sample_with_ray(
            setup, run_seed, pending, tell=progress.show,
            should_stop=lambda: failed.too_many, say=progress.run.say,
        )  # fmt: skip
    processes = min(setup.sample.num_gpus, len(pending))
    if processes <= 1:
        return None
    from perpo_pipeline.sample.processes import sample_in_processes

    return sample_in_processes(
        setup, run_seed, pending, processes,
        tell=progress.show, should_stop=lambda: failed.too_many,
    )  # fmt: skip


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


class _Progress:
    """A bar with prompts and tokens a second, time left, and a preview of the rewards."""

    def __init__(self, run: Run, split: str, num_prompts: int, *, done: int) -> None:
        self.run, self.split, self.num_prompts, self.done = run, split, num_prompts, done
        self.bar: Any = None
        self.prompts = self.tokens = self.scored = self.parsed = 0
        self.reward = 0.0

    def begin(self) -> None:
        """The model is there; the clock starts."""
        count = self.run.config.sample.num_samples
        self.bar = self.run.bar(
            f"sample {self.split} ({count} a prompt)", total=self.num_prompts, initial=self.done,
            unit="prompt",
        )  # fmt: skip
        self.started = time.monotonic()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def tell(self, prompts: Sequence[Row], rows: Sequence[Row]) -> None:
        """Some prompts are done."""
        self.preview(prompts, rows)
        self.show(self.prompts + len(prompts), self.tokens + count_tokens(rows))

    def show(self, prompts: int, tokens: int) -> None:
        """So much is done since the beginning."""
        new, self.prompts, self.tokens = prompts - self.prompts, prompts, tokens
        shown = {"tokens/s": f"{tokens / max(time.monotonic() - self.started, 1e-9):.0f}"}
        if self.scored:
            shown["parsed"] = f"{self.parsed / self.scored:.0%}"
            shown["reward"] = f"{self.reward / self.scored:.3f}"
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(new)

    def preview(self, prompts: Sequence[Row], rows: Sequence[Row]) -> None:
        """Score rows for the bar, where that is asked for."""
        samples = [row for row in rows if "reason" not in row]
        reward = self.run.config.sample.preview_reward
        if reward is not None and samples:
            self._preview(reward, prompts, samples)

    def _preview(self, reward: str, prompts: Sequence[Row], samples: Sequence[Row]) -> None:
        truth = {"iou": "gt_box", "edit_similarity": "gt_text"}[reward]
        known = {row["prompt_id"]: row for row in prompts if row[truth] is not None}
        some = [row for row in samples if row["prompt_id"] in known]
        if not some:
            return
        scores = score_samples(
            pa.Table.from_pylist(some, schema=SAMPLES.columns),
            pa.table({name: [row[name] for row in known.values()] for name in TRUTH_COLUMNS}),
            reward=reward, **_box_settings(self.run.config),
        )  # fmt: skip
        self.scored += len(some)
        self.parsed += sum(scores["parse_ok"].to_pylist())
        self.reward += sum(scores["reward"].to_pylist())


def _box_settings(config: RunConfig) -> dict[str, str]:
    return {"box_format": config.model.box_format, "box_frame": config.model.box_frame}
