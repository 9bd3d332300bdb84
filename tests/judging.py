"""Two questions for each benchmark of `perpo judge`, and a reply that all of them can read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fake_judge import endpoint, perpo
from fake_openai_server import Server
from tiny_models import noise_image

from perpo_pipeline.evaluate.judge.llava_bench import LLAVA_BENCH
from perpo_pipeline.evaluate.judge.mm_vet import MM_VET
from perpo_pipeline.evaluate.judge.mmhal import KINDS, MMHAL
from perpo_pipeline.evaluate.judge.win_rate import WIN_RATE
from perpo_pipeline.store.artifacts import Version, open_version

REPLY = (
    "8 6\nFirst answer: accuracy 3, adherence 3, truthfulness 3\n"
    "Second answer: accuracy 3, adherence 3, truthfulness 3\nBetter: 0\nRating: 4\nScore: 0.5"
)
COMMANDS = {task.name: task for task in (WIN_RATE, LLAVA_BENCH, MMHAL, MM_VET)}
IMAGES = ("0.png", "1.jpg")
ANSWERS = ("answer 0", "answer 1")


def reply_to_all(prompt: str) -> str:
    return REPLY


def save_images(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(IMAGES):
        noise_image(number, 20, 10).save(folder / name)


def write(path: Path, rows: Any, *, lines: bool = True) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    return path


def options(folder: Path, command: str, answers: Sequence[str] = ANSWERS) -> list[str | Path]:
    """Files of two questions, each about another image, and the options that name them."""
    said = [{"question_id": i, "text": text} for i, text in enumerate(answers)]
    asked = [
        {"question_id": i, "image": name, "text": f"question {i}", "category": "conv"}
        for i, name in enumerate(IMAGES)
    ]
    if command == "win-rate":
        return [
            *("--questions", write(folder / "q.jsonl", asked)),
            *("--answers", write(folder / "a.jsonl", said)),
            *("--answers-b", write(folder / "b.jsonl", said)),
        ]
    if command == "llava-bench":
        captions = [{"image": name, "caption": "c"} for name in IMAGES]
        reference = [{"question_id": i, "text": "reference"} for i in range(2)]
        return [
            *("--questions", write(folder / "q.jsonl", asked)),
            *("--context", write(folder / "c.jsonl", captions)),
            *("--reference", write(folder / "r.jsonl", reference)),
            *("--answers", write(folder / "a.jsonl", said)),
        ]
    if command == "mmhal":
        rows = [
            {
                "question_type": KINDS[i],
                "image_src": f"https://pictures.example/65535/{name}",
                "image_content": ["Cup"],
                "question": f"question {i}",
                "gt_answer": "truth",
                "model_answer": answers[i],
            }
            for i, name in enumerate(IMAGES)
        ]
        return ["--responses", write(folder / "r.json", rows, lines=False)]
    dataset = {
        f"v1_{i}": {
            "imagename": name,
            "question": f"question {i}",
            "answer": "x",
            "capability": ["ocr"],
        }
        for i, name in enumerate(IMAGES)
    }
    said_by_id = {f"v1_{i}": text for i, text in enumerate(answers)}
    return [
        *("--dataset", write(folder / "d.json", dataset, lines=False)),
        *("--answers", write(folder / "a.json", said_by_id, lines=False)),
    ]


def judge(
    folder: Path,
    command: str,
    server: Server,
    *more: str | Path,
    answers: Sequence[str] = ANSWERS,
) -> int:
    files = options(folder, command, answers)
    return perpo("judge", command, *files, "--out", folder / "out", *endpoint(server), *more)


def judgements(folder: Path) -> Version:
    return open_version(folder / "out" / "judgements", "judgements")
