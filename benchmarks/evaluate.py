"""Time greedy answers to many prompts, as `perpo eval` makes them and with transformers' generate.

    python benchmarks/evaluate.py --json evaluate.json
    python benchmarks/evaluate.py --engine vllm            (needs vLLM)

All ways begin with encoded image files and end with texts:
  generate       processor and model.generate(do_sample=False) on batches padded on the left
  generate-one   the same, one prompt at a time
  backend        ours: `TransformersBackend.sample`, or `VllmBackend.sample`, with greedy decoding

A random LLaVA is written to disk in float32, and every way loads it from there. No token ends an
answer, so all ways decode the same number of tokens, which is checked; answers that differ in any
token are counted. The repeats of all ways are interleaved, and medians are reported; beside the
time on the wall, the processor time of all threads, which other programs disturb less. vLLM on a
CPU needs HF_HUB_OFFLINE=1 and, if torchvision was built for CUDA,
PYTHONPATH=tests/with_vllm/torchvision_on_cpu.
"""

import argparse
import io
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # download nothing

import transformers
from PIL import Image
from sample import ENGINE_CASES, interleave, print_table, summarise
from sample_vllm import make_rows, random_words, save_hub_model
from sample_ways import NO_TOKEN, Tokens
from train_step import keep_memory
from train_step_models import IMAGE, Shape

from perpo_pipeline.config.eval import EvalConfig
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.inference.backend import Backend, BackendSetup, Failure
from perpo_pipeline.vlm.files import resolve_model

Row = dict[str, Any]
ENGINES = ("transformers", "vllm")
LIBRARY, OURS = ("generate", "generate-one"), "backend"


@dataclass(frozen=True)
class Case:
    """`prompts` prompts in batches of `batch_size`, `per_image` after another about one image."""

    shape: Shape
    prompts: int
    batch_size: int
    answer_tokens: int
    per_image: int = 1


SHAPE = ENGINE_CASES["cpu"]["llava15-grounding"].shape  # 576 image tokens and 22 of text
CASES = {
    "llava15-grounding": Case(SHAPE, 32, 16, 26),
    # RefCOCO's testA has 5,657 prompts about 750 images.
    "llava15-shared-images": Case(SHAPE, 32, 16, 26, per_image=8),
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    rows: list[Row] = []
    for name in options.case:
        rows += time_case(name, CASES[name], options.engine, options.repeats)
    header = {
        "engine": options.engine,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "repeats": options.repeats,
        "cases": {name: asdict(CASES[name]) for name in options.case},
    }
    if options.json:
        result = {"header": header, "rows": rows}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=ENGINES, default="transformers")
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args(arguments)


def time_case(name: str, case: Case, engine: str, repeats: int) -> list[Row]:
    """Rows of the JSON, one per way; prints their table."""
    rows = make_prompts(case)
    with tempfile.TemporaryDirectory() as folder:
        model = save_hub_model(
            case.shape, Path(folder) / "model", torch.float32, torch.device("cpu")
        )
        backend = open_backend(model, Path(folder), case, engine)
        library = Library(model)
        runs = {way: Runs() for way in (*LIBRARY, OURS)}
        ways = {
            "generate": partial(library.answer, rows, case.batch_size, case.answer_tokens),
            "generate-one": partial(library.answer, rows, 1, case.answer_tokens),
            OURS: partial(answer, backend, rows),
        }
        kept = {way: partial(runs[way].time, draw) for way, draw in ways.items()}
        tokens = case.prompts * case.answer_tokens
        seconds = interleave(f"{engine} {name}", kept, tokens, repeats)
        backend.close()
    made = summarise(seconds, case.prompts, tokens, LIBRARY, OURS)
    fastest = min(runs[way].cpu_s for way in LIBRARY)
    for row in made:
        ran = runs[row["way"]]
        row |= {
            "case": name,
            "prefix_tokens": library.prefix_tokens,
            "different": sum(a != b for a, b in zip(ran.answers, runs[OURS].answers, strict=True)),
            "cpu_ms_per_prompt": 1e3 * ran.cpu_s / case.prompts,
            "cpu_faster": fastest / ran.cpu_s,
        }
    print_table(
        f"{engine} {name}: prefix {library.prefix_tokens}, {case.prompts} answers of "
        f"{case.answer_tokens}, batches of {case.batch_size}",
        made,
    )
    for row in made:
        print(
            f"{row['way']:23s} processor time {row['cpu_ms_per_prompt']:,.1f} ms/prompt, ratio "
            f"{row['cpu_faster']:.2f}; {row['different']} answers differ from ours"
        )
    return made


def make_prompts(case: Case) -> list[Row]:
    """Rows of `prompts`, each with the image of the first of its `per_image`."""
    rows = make_rows(case.prompts, random_words(case.shape.vocab))
    for index, row in enumerate(rows):  # 12 to 18 words, so that batches are padded
        row["prompt"] = " ".join(row["prompt"].split()[index % 7 :])
    images = [rows[index - index % case.per_image] for index in range(len(rows))]
    shown = ("image", "image_sha256")
    return [
        row | {name: image[name] for name in shown} for row, image in zip(rows, images, strict=True)
    ]


class Runs:
    """The last answers of a way, and the processor time of each of its rounds."""

    def __init__(self) -> None:
        self.answers: Tokens = []
        self.seconds: list[float] = []

    def time(self, draw: Callable[[], Tokens]) -> Tokens:
        """The answers of one round."""
        start = time.process_time()
        self.answers = [list(one) for one in draw()]
        self.seconds.append(time.process_time() - start)
        return self.answers

    @property
    def cpu_s(self) -> float:
        """The median without the first round, which warms up."""
        return statistics.median(self.seconds[1:])


class Library:
    """transformers as its users run it: a processor, a padded batch, `generate`, `batch_decode`."""

    def __init__(self, model: Path) -> None:
        self.processor = transformers.AutoProcessor.from_pretrained(model, backend="pil")
        self.processor.tokenizer.padding_side = "left"
        self.model: Any = transformers.AutoModelForImageTextToText.from_pretrained(
            model, dtype=torch.float32
        ).eval()
        config = self.model.generation_config
        config.eos_token_id = None  # no token ends an answer
        config.suppress_tokens = [IMAGE]  # random weights would draw the placeholder
        self.prefix_tokens = 0

    @torch.inference_mode()
    def answer(self, rows: Sequence[Row], batch_size: int, answer_tokens: int) -> Tokens:
        """The token ids of every answer."""
        answers: list[list[int]] = []
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            inputs = self.processor(
                images=[Image.open(io.BytesIO(row["image"]["bytes"])) for row in batch],
                text=[self._render(row["prompt"]) for row in batch],
                padding=True,
                return_tensors="pt",
            )
            width = inputs["input_ids"].shape[1]
            self.prefix_tokens = max(self.prefix_tokens, width)
            made = self.model.generate(**inputs, do_sample=False, max_new_tokens=answer_tokens)
            drawn = made[:, width:].tolist()
            self.processor.batch_decode(drawn, skip_special_tokens=True)
            answers += drawn
        return answers

    def _render(self, prompt: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        messages = [{"role": "user", "content": content}]
        return str(self.processor.apply_chat_template(messages, add_generation_prompt=True))


def open_backend(model: Path, scratch: Path, case: Case, engine: str) -> Backend:
    """The backend that `perpo eval` opens; no token ends an answer."""
    setup = BackendSetup(
        ModelConfig(id=str(model), device="cpu"),
        resolve_model(str(model)),
        {"dtype": "float32", "preprocess": "processor"},
        EvalConfig(max_new_tokens=case.answer_tokens, batch_size=case.batch_size),
        scratch,
    )
    if engine == "vllm":
        from perpo_pipeline.inference.vllm_backend import VllmBackend

        in_vllm = VllmBackend(setup)
        in_vllm.weightless.eos_token_ids = ()
        return in_vllm
    from perpo_pipeline.inference.transformers_backend import TransformersBackend

    here = TransformersBackend(setup)
    here.vlm.eos_token_ids = (NO_TOKEN,)
    return here


def answer(backend: Backend, rows: Sequence[Row]) -> Tokens:
    """The token ids of every answer, in the calls that `perpo eval` makes for a part."""
    step = backend.prompts_per_call or len(rows)
    answers: list[Sequence[int]] = []
    for start in range(0, len(rows), step):
        batch = rows[start : start + step]
        for one in backend.sample(batch, range(len(batch))):
            if isinstance(one, Failure):
                raise SystemExit(f"a prompt failed: {one.reason}")
            answers.append(one.completions[0].token_ids)
    return answers


if __name__ == "__main__":
    keep_memory()
    main()
