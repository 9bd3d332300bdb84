"""A new user's way through the program: own photos, own pages, stages one by one, with interrupts.

Nothing may be stale without a word, and nothing lost beyond what a message says.
"""

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from html_page import Page
from interrupting import perpo_with_signal
from PIL import Image, ImageDraw

from perpo_pipeline import cli
from perpo_pipeline.store.artifacts import Version, open_version
from perpo_pipeline.testbed.scenes import referring_example
from perpo_pipeline.train import reference

COMMON = """
run: {run}
model: {{id: testbed, dtype: float32, device: cpu}}
prepare:
  train: {{source: jsonl, path: {data}/train.jsonl}}
  test: {{source: jsonl, path: {data}/test.jsonl}}
sample: {{num_samples: 6, max_new_tokens: 24, batch_size: 2}}
filter: {{min_margin: {margin}}}
train: {{batch_size: 2, learning_rate: 1.0e-3, lora: {{rank: 2, alpha: 4}}, methods: {{perpo: }}}}
eval: {{max_new_tokens: 24, batch_size: 4, conditions: []}}
report: {{num_resamples: 100, pictures: 2}}
"""
PHOTOS, PAGES = 12, 3
MARGINS = (0.8, 0.1)  # before and after the change


class User:
    """A folder with the user's files; commands run in it."""

    def __init__(
        self, folder: Path, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch
    ) -> None:
        self.folder, self.capsys = folder, capsys
        patch.chdir(folder)
        patch.setenv("COLUMNS", "100")
        patch.setattr(reference, "LISTS_PER_CALL", 2)  # as in the interrupted commands

    def perpo(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a command that runs in this process."""
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([*arguments])
        said = self.capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    def interrupts(self, *arguments: str, at: int) -> str:
        """Ctrl-C in a command as its call or step `at` begins; returns stderr."""
        code, err = perpo_with_signal(
            *arguments, folder=self.folder, number=signal.SIGINT, calls=at
        )
        assert code == 130, err
        return err

    def does(self, *arguments: str) -> str:
        """Run a command that must succeed; returns stderr."""
        code, _, err = self.perpo(*arguments)
        assert code == 0, (arguments, err)
        return err

    def is_refused(self, *arguments: str) -> str:
        """Run a command that must end with one error; returns stderr."""
        code, _, err = self.perpo(*arguments)
        assert code == 2 and err.count("perpo: error: ") == 1 and "Traceback" not in err, err
        return err

    def configure(self, name: str, margin: float) -> None:
        text = COMMON.format(run=name, data=name, margin=margin)
        (self.folder / f"{name}.yaml").write_text(text)

    def version(self, name: str) -> Version:
        return open_version(self.folder / "data" / name)

    def states(self, config: str) -> dict[str, str]:
        """What `perpo status` says of each artifact."""
        _, out, err = self.perpo("status", "--config", config, "--json")
        assert not err or "error" not in err, err
        rows = map(json.loads, out.splitlines())
        used = [row for row in rows if row["state"] != "unused"]
        return {f"{row['artifact']}/{row['variant']}": row["state"] for row in used}


def write_photos(folder: Path) -> None:
    """Photos with one box each; the questions are those that the shipped model knows."""
    folder.mkdir()
    for split, seed in (("train", 1), ("test", 2)):
        rows: list[dict[str, Any]] = []
        for index in range(PHOTOS):
            example = referring_example(seed, index)
            name = f"{split}-{index}.png"
            example.image.save(folder / name)
            box = [round(number) for number in example.box_xyxy_px]
            question = {"task": "grounding", "expression": example.expression}
            rows.append({"image": name, **question, "gt_box": box})
        write_lines(folder / f"{split}.jsonl", rows)


def write_pages(folder: Path) -> None:
    """Pages with a word each, which the shipped model cannot read."""
    folder.mkdir()
    for split in ("train", "test"):
        rows = []
        for index in range(PAGES):
            page = Image.new("RGB", (64, 64), "white")
            text = f"{split} {index}"
            ImageDraw.Draw(page).text((4, 24), text, fill="black")
            page.save(folder / f"{split}-{index}.png")
            question = {"prompt": "What does this page say?", "task": "ocr", "gt_text": text}
            rows.append({"image": f"{split}-{index}.png", **question})
        write_lines(folder / f"{split}.jsonl", rows)


def write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.slow
def test_own_photos_from_the_first_command_to_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    user = User(tmp_path, capsys, monkeypatch)
    write_photos(tmp_path / "photos")
    user.configure("photos", MARGINS[0])
    config = ("--config", "photos.yaml")

    # The wrong order: each error names the whole command that comes first.
    assert "perpo prepare --config photos.yaml" in user.is_refused("sample", *config)
    user.does("prepare", *config)
    assert "perpo sample --config photos.yaml" in user.is_refused("score", *config)
    assert "perpo filter --config photos.yaml" in user.is_refused("train", *config)
    assert "perpo train --config photos.yaml" in user.is_refused("eval", *config)

    # Ctrl-C in sampling: what the message says is kept is what the next command begins with.
    err = user.interrupts("sample", *config, at=2)
    kept = re.search(r"(\d+) of 12 prompts are kept", err)
    assert kept is not None and int(kept[1]) == 4, err
    assert user.states("photos.yaml")["samples/train"] == "interrupted"
    assert "4 of 12 prompts are done already" in user.does("sample", *config)
    user.does("score", *config)
    user.does("filter", *config)
    few = user.version("photos/preferences/train").manifest["rows"]

    # Ctrl-C in training, after the reference (two lists per call) and one step.
    err = user.interrupts("train", *config, at=few // 2 + 1)
    assert "after step " in err and "which is saved" in err, err
    user.does("train", *config)
    user.does("eval", *config)
    user.does("report", *config)
    assert set(user.states("photos.yaml").values()) == {"current"}

    # One setting changes: no stage works silently on what the configuration no longer describes.
    user.configure("photos", MARGINS[1])
    for stage in ("train", "eval", "report"):
        refused = user.is_refused(stage, *config)
        assert "0.8" in refused and "0.1" in refused and "perpo filter" in refused, refused
    states = user.states("photos.yaml")
    assert states["samples/train"] == states["scores/train"] == "current"
    assert states["metrics/base@test"] == "current", "the base needs no lists"
    for name in ("preferences/train", "adapter/perpo", "metrics/perpo@test", "report/default"):
        assert states[name] == "stale", name

    # The lists alone are made again: the old adapter is not shown as trained on the new ones.
    user.does("filter", *config)
    many = user.version("photos/preferences/train").manifest["rows"]
    assert 0 < few < many
    assert "perpo train" in user.is_refused("report", *config)
    allowed = user.does("report", *config, "--allow-stale")
    assert "preferences" in allowed
    page = Page(page_of(user, "photos"))
    text = " ".join(" ".join(page.text).split())
    assert f"trained on {many} lists" not in text, "the adapter was trained on the old lists"

    # `perpo run` makes what is missing, and then nothing.
    user.does("run", *config)
    assert set(user.states("photos.yaml").values()) == {"current"}
    text = " ".join(" ".join(Page(page_of(user, "photos")).text).split())
    trained = user.version("photos/adapter/perpo").manifest["counts"]["lists"]
    assert trained == many and f"{many} lists" in text
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("data/photos/*/*/*/*")}
    user.does("run", *config)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("data/photos/*/*/*/*")}
    assert after == before

    # An option instead: accepted, and named.
    user.does("filter", *config, "--min-margin", "0.4")
    named = user.does("train", *config)
    assert "--min-margin" in named and "0.4" in named, named


@pytest.mark.slow
def test_own_pages_beside_another_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Advice names the pages' configuration, not the default one."""
    user = User(tmp_path, capsys, monkeypatch)
    write_pages(tmp_path / "pages")
    user.configure("pages", MARGINS[1])
    config = ("--config", "pages.yaml")
    for stage in ("prepare", "sample", "score"):
        user.does(stage, *config)
    refused = user.is_refused("train", *config)
    assert "perpo filter --config pages.yaml" in refused and "demo" not in refused
    user.does("plan", *config)
    missing = user.is_refused("sample")
    assert "--config" in missing, "there is no configs/demo.yaml here"


def page_of(user: User, run: str) -> str:
    return (user.version(f"{run}/report/default").path / "report.html").read_text()
