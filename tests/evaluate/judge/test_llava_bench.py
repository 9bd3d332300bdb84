"""`perpo judge llava-bench`: the published review file, and questions asked on loopback."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_judge import Opinion, between, endpoint, metrics, perpo, values
from fake_openai_server import Json, Server

from perpo_pipeline.store.artifacts import open_version

Serve = Callable[[Opinion], Server]


def write_lines(path: Path, rows: list[Json]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def judge_reviews(folder: Path, rows: list[Json], *more: str) -> int:
    file = write_lines(folder / "reviews.jsonl", rows)
    return perpo("judge", "llava-bench", "--reviews", file, "--out", folder / "out", *more)


def review(identity: int, content: str, **more: object) -> Json:
    return {"question_id": identity, "category": "llava_bench_conv", "content": content, **more}


def test_the_published_reviews_give_the_published_score(
    realdata: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sums of the ratings, counted by hand in the file: conv 89.5 / 151, detail 63 / 132, complex
    185.5 / 239 over 17, 15 and 28 questions; all 5.633 / 8.7 = 0.6475."""
    file = realdata / "llava_bench" / "reviews_llava-v1.5-7b-eval1.jsonl"
    assert perpo("judge", "llava-bench", "--reviews", file, "--out", tmp_path) == 0
    found = metrics(tmp_path)
    expected = {
        "all": (60, 0.647),
        "llava_bench_conv": (17, 0.593),
        "llava_bench_detail": (15, 0.477),
        "llava_bench_complex": (28, 0.776),
    }
    for dataset, (n, score) in expected.items():
        row = found["llava_bench_score", dataset]
        assert (row["n"], round(row["value"], 3)) == (n, score)
        assert row["low"] < row["value"] < row["high"]
    assert found["reference_rating", "all"]["value"] == pytest.approx(522 / 60)
    assert found["model_rating", "all"]["value"] == pytest.approx(338 / 60)
    assert found["parse_rate", "all"]["value"] == 1
    shown = capsys.readouterr()
    assert shown.out.splitlines()[1].split()[2:5] == ["all", "64.7", "%"]
    assert "`tuple`" not in shown.err


def test_unparsed_reviews_are_counted_and_never_averaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """(4 + 8) / (8 + 8) = 0.75; the [-1, -1] of the third would make it 11 / 15."""
    rows = [
        review(0, "8 4\nwhy", tuple=[8, 4]),
        review(1, "8 8", tuple=[8, 8]),
        review(2, "I cannot say", tuple=[-1, -1]),
    ]
    assert judge_reviews(tmp_path, rows) == 0
    found = values(tmp_path / "out")
    assert found["llava_bench_score"] == 0.75 and found["parse_rate"] == pytest.approx(2 / 3)
    message = capsys.readouterr().err
    assert "1 of 3 questions count only in parse_rate" in message and "`tuple`" not in message


def test_a_tuple_that_differs_from_the_content_is_reported_and_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [review(0, "8 4", tuple=[8, 9]), review(1, "8 8", tuple=[-1, -1]), review(2, "5 5")]
    assert judge_reviews(tmp_path, rows) == 0
    assert "in 2 of 3 reviews `tuple` differs from" in capsys.readouterr().err
    assert values(tmp_path / "out")["model_rating"] == pytest.approx(17 / 3)


def test_reviews_name_the_judge_only_if_it_is_given(tmp_path: Path) -> None:
    judge_reviews(tmp_path, [review(0, "8 4")], "--judge-model", "gpt-4-0314")
    judgements = open_version(tmp_path / "out" / "judgements")
    (row,) = judgements.table().to_pylist()
    assert (row["model"], row["prompt_sha256"], row["reply"]) == ("gpt-4-0314", None, "8 4")


def test_all_faults_of_reviews_are_reported_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        review(0, "8 4"),
        review(0, "8 4"),
        review(1, "8 4") | {"content": None},
        {"category": "c", "content": "8 4"},
    ]
    assert judge_reviews(tmp_path, rows) == 2
    message = capsys.readouterr().err
    assert "line 2: question_id '0' occurs twice" in message
    assert "line 3: `content` is not text: None" in message
    assert "line 4: `question_id` is None" in message
    assert not (tmp_path / "out").exists()


def write_files(folder: Path) -> dict[str, Path]:
    """Three questions on two images; each file in a different order."""
    kinds = ["conv", "detail", "conv"]
    asked = [
        {"question_id": i, "image": f"{i % 2}.jpg", "text": f"question {i}", "category": kinds[i]}
        for i in range(3)
    ]
    captions = [
        {"id": "b", "image": "1.jpg", "caption": ["one", "more"]},
        {"id": "a", "image": "0.jpg", "caption": "zero"},
    ]
    return {
        "questions": write_lines(folder / "questions.jsonl", asked),
        "context": write_lines(folder / "context.jsonl", captions),
        "reference": write_lines(
            folder / "reference.jsonl",
            [{"question_id": i, "text": f"reference {i}"} for i in (2, 0, 1)],
        ),
        "answers": write_lines(
            folder / "answers.jsonl", [{"question_id": i, "text": f"model {i}"} for i in (1, 2, 0)]
        ),
    }


def judge_files(folder: Path, files: dict[str, Path], server: Server) -> int:
    flags = [part for name, path in files.items() for part in (f"--{name}", path)]
    return perpo("judge", "llava-bench", *flags, "--out", folder / "out", *endpoint(server))


def test_each_question_is_asked_with_its_own_caption_and_answers(
    tmp_path: Path, serve: Serve
) -> None:
    """Ratings 10 and 4, 10 and 5, 10 and 6: 15 / 30 in all, 10 / 20 conv, 5 / 10 detail."""

    def opinion(prompt: str) -> str:
        number = int(between(prompt, "QUESTION").removeprefix("question "))
        assert between(prompt, "DESCRIPTION") == ("one\nmore" if number == 1 else "zero")
        assert between(prompt, "ANSWER OF ASSISTANT 1") == f"reference {number}"
        assert between(prompt, "ANSWER OF ASSISTANT 2") == f"model {number}"
        return f"10 {4 + number}\nI weighed them."

    server = serve(opinion)
    assert judge_files(tmp_path, write_files(tmp_path), server) == 0
    assert len(server.bodies) == 3
    out = tmp_path / "out"
    assert values(out)["llava_bench_score"] == 0.5 and values(out)["parse_rate"] == 1
    assert values(out, "llava_bench_conv")["llava_bench_score"] == 0.5
    assert values(out, "llava_bench_detail")["model_rating"] == 5
    assert judge_files(tmp_path, write_files(tmp_path), server) == 0
    assert len(server.bodies) == 3


def test_a_missing_caption_and_answer_are_reported_together(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_files(tmp_path)
    write_lines(files["context"], [{"image": "0.jpg", "caption": 5}])
    write_lines(files["answers"], [{"question_id": 0, "text": "model 0"}])
    assert judge_files(tmp_path, files, serve(lambda _: "1 1")) == 2
    message = capsys.readouterr().err
    assert "`caption` of '0.jpg' is neither text nor a list of texts" in message
    assert "no caption of image '1.jpg', which question '1' is about" in message
    assert "answers.jsonl: no answer to question '2'" in message


def test_reviews_and_a_server_at_once_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judge_reviews(tmp_path, [review(0, "8 4")], "--base-url", "http://127.0.0.1:9/v1") == 2
    assert "--base-url has no effect with --reviews" in capsys.readouterr().err


def test_what_is_not_given_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert perpo("judge", "llava-bench", "--answers", "a", "--out", tmp_path) == 2
    assert "--questions, --context, --reference must be given" in capsys.readouterr().err
    files = write_files(tmp_path)
    flags = [part for name, path in files.items() for part in (f"--{name}", path)]
    assert perpo("judge", "llava-bench", *flags, "--out", tmp_path) == 2
    assert "--base-url, --judge-model must be given" in capsys.readouterr().err
