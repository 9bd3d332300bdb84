"""`perpo judge mmhal`: replies in every form the official script leaves, and questions asked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_judge import Opinion, between, endpoint, metrics, perpo, values
from fake_openai_server import Json, Server

from perpo_pipeline.evaluate.judge.mmhal import KINDS

Serve = Callable[[Opinion], Server]


def judge_reviews(folder: Path, replies: Any) -> int:
    file = folder / "reviews.json"
    file.write_text(json.dumps(replies))
    return perpo("judge", "mmhal", "--reviews", file, "--out", folder / "out")


def judge_responses(folder: Path, rows: Any, server: Server) -> int:
    file = folder / "responses.json"
    file.write_text(json.dumps(rows))
    return perpo("judge", "mmhal", "--responses", file, "--out", folder / "out", *endpoint(server))


def make_rows(count: int) -> list[Json]:
    return [
        {
            "question_type": KINDS[i % 8],
            "question_topic": "t",
            "image_id": f"{i:02}",
            "image_src": "",
            "image_content": ["Cup", "Table"],
            "question": f"question {i}",
            "gt_answer": f"truth {i}",
            "model_answer": f"answer {i}",
        }
        for i in range(count)
    ]


def test_replies_of_every_form_are_read_and_the_unparsed_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ratings 6, 2, 0 and 4 of five: mean 3, two of four below 3. The script's 0 for the fourth
    would make it 2.4."""
    raw = {"choices": [{"message": {"role": "assistant", "content": "Rating: 2, one thing."}}]}
    replies = ["Rating: 6", raw, {"content": "rating: 0"}, "no rating", "**Rating:** 4"]
    assert judge_reviews(tmp_path, replies) == 0
    found = values(tmp_path / "out")
    assert found == {"mmhal_score": 3, "hallucination_rate": 0.5, "parse_rate": 0.8}
    shown = capsys.readouterr()
    assert "1 of 5 questions count only in parse_rate" in shown.err
    assert "5 entries" in shown.err and "MMHal-Bench has 96" in shown.err
    assert shown.out.splitlines()[1].split()[2:6] == ["all", "3.00", "of", "6"]


def test_the_position_of_a_question_gives_its_kind(tmp_path: Path) -> None:
    """Positions 1 and 9 are adversarial: ratings 1 and 2."""
    assert judge_reviews(tmp_path, [f"Rating: {i // 8 + i % 2}" for i in range(16)]) == 0
    found = metrics(tmp_path / "out")
    assert found["mmhal_score", "adversarial"]["value"] == 1.5
    assert found["mmhal_score", "adversarial"]["n"] == 2
    assert found["mmhal_score", "attribute"]["value"] == 0.5
    assert {dataset for _, dataset in found} == {"all", *KINDS}


def test_the_benchmarks_template_is_asked_in_its_order(
    realdata: Path, tmp_path: Path, serve: Serve
) -> None:
    """Rating 5 for every answer but those to the 12 adversarial questions, which get 1: 4.5."""
    rows = json.loads((realdata / "mmhal" / "mmhal-bench_answer_template.json").read_text())
    for row in rows:
        row["model_answer"] = row["question_type"]

    def opinion(prompt: str) -> str:
        is_bad = between(prompt, "ANSWER OF THE ASSISTANT") == "adversarial"
        return f"So it is.\nRating: {1 if is_bad else 5}"

    server = serve(opinion)
    assert judge_responses(tmp_path, rows, server) == 0
    found = metrics(tmp_path / "out")
    assert found["mmhal_score", "all"]["value"] == 4.5
    assert found["hallucination_rate", "all"]["value"] == 12 / 96
    assert found["hallucination_rate", "adversarial"]["value"] == 1
    assert found["hallucination_rate", "adversarial"]["n"] == 12
    assert len(server.bodies) == 96


def test_the_judge_is_shown_objects_truth_and_answer_of_one_question(
    tmp_path: Path, serve: Serve
) -> None:
    def opinion(prompt: str) -> str:
        number = between(prompt, "QUESTION").removeprefix("question ")
        assert between(prompt, "OBJECTS") == "Cup, Table"
        assert between(prompt, "RIGHT ANSWER") == f"truth {number}"
        assert between(prompt, "ANSWER OF THE ASSISTANT") == f"answer {number}"
        return "Rating: 3"

    server = serve(opinion)
    assert judge_responses(tmp_path, make_rows(8), server) == 0
    assert values(tmp_path / "out")["hallucination_rate"] == 0
    assert judge_responses(tmp_path, make_rows(8), server) == 0
    assert len(server.bodies) == 8


def test_a_wrong_order_and_missing_answers_are_reported_at_once(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = make_rows(8)
    rows[2], rows[3] = rows[3], rows[2]
    rows[5]["model_answer"] = ""
    rows[6]["image_content"] = "Cup"
    rows[7] = "row"
    server = serve(lambda _: "Rating: 3")
    assert judge_responses(tmp_path, rows, server) == 2
    message = capsys.readouterr().err
    for fault in (
        "entry 2: `question_type` is 'counting'; in the benchmark's order it is 'comparison'",
        "entry 3: `question_type` is 'comparison'; in the benchmark's order it is 'counting'",
        "entry 5: `model_answer` is empty",
        "entry 6: `image_content` is not a list of texts",
        "entry 7: not a JSON object",
    ):
        assert fault in message
    assert "5 faults" in message and not server.paths


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("[]", "holds no row"),
        ("{}", "not a JSON list"),
        ("[", "not JSON"),
        ("null", "holds null"),
        ("[5]", "entry 0: neither text"),
        ('[{"choices": []}]', "entry 0: neither text"),
        ('[{"choices": [{"message": {"content": null}}]}]', "entry 0: neither text"),
        ('["\\ud800"]', "entry 0: neither text"),
    ],
)
def test_reviews_that_cannot_be_read_are_refused(
    content: str, fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.json").write_text(content)
    assert perpo("judge", "mmhal", "--reviews", tmp_path / "r.json", "--out", tmp_path / "o") == 2
    assert fault in capsys.readouterr().err


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert perpo("judge", "mmhal", "--reviews", tmp_path / "none", "--out", tmp_path) == 2
    message = capsys.readouterr().err
    assert "none: no such file" in message and "1 fault" in message
