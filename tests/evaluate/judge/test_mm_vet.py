"""`perpo judge mm-vet`: grades by capability, asked on loopback."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_judge import Opinion, between, endpoint, metrics, perpo
from fake_openai_server import Json, Server

Serve = Callable[[Opinion], Server]
DATASET: Json = {
    "v1_0": {
        "imagename": "0.png",
        "question": "x?",
        "answer": "-1 <AND> -5",
        "capability": ["ocr", "math"],
    },
    "v1_1": {
        "imagename": "1.png",
        "question": "y?",
        "answer": "4 <OR> four",
        "capability": ["ocr"],
    },
    "v1_2": {"imagename": "2.png", "question": "z?", "answer": "red", "capability": ["rec"]},
}
ANSWERS = {"v1_2": "0.0", "v1_0": "0.5", "v1_1": "1.0"}  # the grades they get


def judge(folder: Path, dataset: Any, answers: Any, server: Server) -> int:
    (folder / "d.json").write_text(dataset if isinstance(dataset, str) else json.dumps(dataset))
    (folder / "a.json").write_text(answers if isinstance(answers, str) else json.dumps(answers))
    return perpo(
        "judge",
        "mm-vet",
        "--dataset",
        folder / "d.json",
        "--answers",
        folder / "a.json",
        "--out",
        folder / "out",
        *endpoint(server),
    )


def test_grades_are_averaged_in_all_and_by_every_capability_of_a_question(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    def opinion(prompt: str) -> str:
        return "Score: " + between(prompt, "ANSWER OF THE ASSISTANT")

    server = serve(opinion)
    assert judge(tmp_path, DATASET, ANSWERS, server) == 0
    found = metrics(tmp_path / "out")
    grades = {
        dataset: (row["value"], row["n"])
        for (name, dataset), row in found.items()
        if name == "mm_vet_score"
    }
    assert grades == {"all": (0.5, 3), "ocr": (0.75, 2), "math": (0.5, 1), "rec": (0, 1)}
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].split()[:5] == ["mm_vet_score", "mm-vet", "all", "50.0", "%"]
    (math,) = (line for line in shown if line.split()[:3] == ["mm_vet_score", "mm-vet", "math"])
    assert math.split()[3:] == ["50.0", "%", "-", "1"]  # one grade says nothing about the spread
    assert judge(tmp_path, DATASET, ANSWERS, server) == 0
    assert len(server.bodies) == 3


def test_and_and_or_reach_the_judge_as_they_are(tmp_path: Path, serve: Serve) -> None:
    server = serve(lambda _: "0.1")
    assert judge(tmp_path, DATASET, ANSWERS, server) == 0
    expected = {between(body["messages"][0]["content"], "EXPECTED") for body in server.bodies}
    assert expected == {row["answer"] for row in DATASET.values()}


def test_all_faults_are_reported_at_once(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = DATASET | {"v1_1": {"question": "y?", "capability": "ocr"}, "v1_3": None}
    server = serve(lambda _: "0.1")
    assert judge(tmp_path, dataset, {"v1_0": 5, "v1_1": "a", "v1_2": "b"}, server) == 2
    message = capsys.readouterr().err
    for fault in (
        "'v1_1': `answer` is not text: None",
        "'v1_1': `capability` is not a list",
        "'v1_3': not a JSON object",
        "a.json: `v1_0` is not text: 5",
        "a.json: no answer to question 'v1_3'",
    ):
        assert fault in message
    assert not server.paths


def test_an_id_that_occurs_twice_is_refused(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    """JSON readers silently keep the last."""
    twice = '{"v1_0": "a", "v1_1": "b", "v1_2": "c", "v1_1": "d"}'
    assert judge(tmp_path, DATASET, twice, serve(lambda _: "0.1")) == 2
    assert "not JSON: the key 'v1_1' is given twice" in capsys.readouterr().err
