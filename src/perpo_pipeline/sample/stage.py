"""`perpo sample`: prompts and a model -> the samples artifact, in parts of whole prompts.

A part is sampled as a whole and written when it is whole, whatever the number of processes and
restarts: batches are composed the same way again, so the same seed gives the same rows.
"""

import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

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


def sample(run: Run, split: str) -> Version:
    """Write N completions of every prompt of one split.

    A prompt that cannot be sampled goes to `errors` with its reason; more than `max_errors` of
    them and the stage fails, keeping what is done.
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
    recipe = Recipe("samples", split, "sample", STAGE_VERSION, settings, inputs,
                    notes=model_notes(run.config.model))  # fmt: skip
    setup = BackendSetup(
        run.config.model, resolved, model_settings,
        config.model_copy(update={"backend": backend}), run.scratch,
        adapter=inputs["adapter"].path if "adapter" in inputs else None,
    )  # fmt: skip

    def work(writer: Writer) -> Mapping[str, Any]:
        table = prompts.table(columns=[*PROMPT_COLUMNS, *TRUTH_COLUMNS[1:]])
        starts = range(0, table.num_rows, config.prompts_per_part)
        chunks = {i: table.slice(start, config.prompts_per_part) for i, start in enumerate(starts)}
        _warn_of_boxes(run, split, resolved, table)
        progress = _Progress(run, split, table.num_rows)
        failed = _Failures(config.max_errors, str(writer.path))
        pending = {}
        for index, chunk in chunks.items():
            if writer.has_part(index):
                progress.skip(chunk.num_rows)
                failed.add(_errors_of(writer, index, chunk))
            else:
                pending[index] = chunk
        with progress.bar:
            note = partial(_note, run, writer.notes)
            for index, found in _sample_parts(setup, run.config.seed, pending, progress, note):
                errors = [row for row in found if "reason" in row]
                # Nothing of this part is written if too many fail: repaired, they are tried again.
                failed.add(errors)
                if errors:
                    writer.write_part(index, errors, table="errors")
                writer.write_part(index, [row for row in found if "reason" not in row])
        return {"prompts": table.num_rows, "failed": failed.count}

    return make(run, recipe, work, out=run.out)


def _note(run: Run, known: dict[str, Any], notes: Mapping[str, Any]) -> None:
    """Say and record what a backend has to tell, each thing once."""
    for name in notes.keys() - known.keys():
        known[name] = notes[name]
        run.say(f"sample: {notes[name]}")


def _warn_of_boxes(run: Run, split: str, resolved: ResolvedModel, prompts: pa.Table) -> None:
    from perpo_pipeline.models import family_of

    doubt = unusual_boxes(family_of(resolved), run.config.model)
    if doubt and "grounding" in prompts["task"].to_pylist():
        run.say(f"sample {split}: {doubt}")


def choose_backend(config: SampleConfig, device: str) -> str:
    """Resolve `auto`: vLLM on CUDA where it is installed, else transformers."""
    if config.backend == "openai" and config.base_url is None:
        raise ConfigError("the openai backend needs the URL of a server",
                          fix="give --base-url http://HOST:PORT/v1 (sample.base_url)")  # fmt: skip
    if config.backend == "openai" and config.num_gpus > 1:
        raise ConfigError("num_gpus has no meaning for the openai backend: the server has the GPUs",
                          fix="leave it out; sample.concurrency is requests at a time")  # fmt: skip
    if config.backend != "auto":
        return config.backend
    if device == "cpu" or importlib.util.find_spec("vllm") is None:
        return "transformers"
    import torch

    return "vllm" if torch.cuda.is_available() else "transformers"


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

    def sample(
        self, prompts: Sequence[Row], tell: Callable[[Sequence[Row], Sequence[Row]], None]
    ) -> list[Row]:
        """SAMPLES rows, and ERRORS rows of what failed; `tell` is called with prompts and rows."""
        rows: list[Row] = []
        step = self.backend.prompts_a_call or len(prompts)
        for start in range(0, len(prompts), step):
            some = prompts[start : start + step]
            seeds = [derive_seed(self.run_seed, "sample", row["prompt_id"]) for row in some]
            found = self.backend.sample(some, seeds)
            new = [
                row
                for prompt, seed, one in zip(some, seeds, found, strict=True)
                for row in _rows_of(prompt["prompt_id"], seed, one)
            ]
            tell(some, new)
            rows += new
        return rows


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


def _sample_parts(
    setup: BackendSetup, run_seed: int, pending: Mapping[int, pa.Table], progress: "_Progress",
    note: Callable[[Mapping[str, Any]], None],
) -> Iterator[tuple[int, list[Row]]]:  # fmt: skip
    """The rows of every part that is not there yet, as they come; backends' notes go to `note`."""
    if not pending:
        return
    processes = min(setup.sample.num_gpus, len(pending))
    if processes > 1:
        from perpo_pipeline.sample.processes import sample_in_processes

        for index, rows, notes in sample_in_processes(setup, run_seed, pending, processes):
            note(notes)
            progress.tell(pending[index].to_pylist(), rows)
            yield index, rows
        return
    sampler = PartSampler(setup, run_seed)
    note(sampler.backend.notes())
    for index, chunk in pending.items():
        rows = sampler.sample(chunk.to_pylist(), progress.tell)
        note(sampler.backend.notes())
        yield index, rows


def _errors_of(writer: Writer, index: int, chunk: pa.Table) -> list[Row]:
    """What of a part that is there already could not be sampled."""
    done = set(writer.read_part(index)["prompt_id"].to_pylist())
    reason = "it failed before; see the `errors` table"
    keys = chunk["prompt_id"].to_pylist()
    return [{"prompt_id": key, "reason": reason} for key in keys if key not in done]


@dataclass
class _Failures:
    """Prompts that failed so far; raises `InputError` once there are more than allowed."""

    allowed: int
    where: str
    count: int = 0

    def add(self, errors: Sequence[Row]) -> None:
        self.count += len(errors)
        if errors and self.count > self.allowed:
            first = errors[-1]
            raise InputError(
                f"{self.count} prompts cannot be sampled (max_errors {self.allowed}), "
                f"for instance {first['prompt_id']}: {first['reason']}",
                where=self.where,
                fix="repair the data and rerun `perpo prepare`, or raise max_errors",
            )


@dataclass
class _Progress:
    """A bar with prompts and tokens a second, time left, and a preview of the rewards."""

    run: Run
    split: str
    num_prompts: int
    tokens: int = 0
    scored: int = 0
    parsed: int = 0
    reward: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        count = self.run.config.sample.num_samples
        self.bar = self.run.bar(
            f"sample {self.split} ({count} a prompt)", total=self.num_prompts, unit="prompt"
        )

    def skip(self, num_prompts: int) -> None:
        """These are there from an earlier run."""
        self.bar.update(num_prompts)

    def tell(self, prompts: Sequence[Row], rows: Sequence[Row]) -> None:
        """Some prompts are done."""
        samples = [row for row in rows if "reason" not in row]
        self.tokens += sum(len(row["completion_token_ids"]) for row in samples)
        shown = {"tokens/s": f"{self.tokens / max(time.monotonic() - self.started, 1e-9):.0f}"}
        reward = self.run.config.sample.preview_reward
        if reward is not None and samples:
            self._preview(reward, prompts, samples)
        if self.scored:
            shown["parsed"] = f"{self.parsed / self.scored:.0%}"
            shown["reward"] = f"{self.reward / self.scored:.3f}"
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(len(prompts))

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
