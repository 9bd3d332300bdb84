"""An lmms-eval that loads no model: it logs that every answer of its three questions is right.

`install_fake_lmms_eval` makes it importable as `lmms_eval` for processes that inherit PYTHONPATH.
It notes its arguments, one call per line, in the file $FAKE_LMMS_EVAL_CALLS. The task `broken`
fails as lmms-eval does: with a message and exit code 0; `killed` dies in the middle.
"""

import itertools
import json
import os
import sys
from pathlib import Path

import pytest

CALLS = "FAKE_LMMS_EVAL_CALLS"


def install_fake_lmms_eval(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the file of the calls, which has one JSON list of arguments per line."""
    package = folder / "lmms_eval"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text("import fake_lmms_eval\nfake_lmms_eval.main()\n")
    record = folder / "lmms_eval-0.7.3.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: lmms_eval\nVersion: 0.7.3\n")
    paths = [str(folder), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv(CALLS, str(folder / "calls"))
    monkeypatch.delenv("PERPO_LMMS_EVAL_PYTHON", raising=False)
    return folder / "calls"


def main() -> None:
    """Read the arguments that perpo gives, and write logs."""
    from harness_logs import write_lmms_eval

    words = sys.argv[1:]
    given = dict(itertools.pairwise(words))
    with open(os.environ[CALLS], "a", encoding="utf-8") as calls:
        calls.write(json.dumps(words) + "\n")
    task = given["--tasks"]
    folder = Path(given["--output_path"]) / "model"
    model = given["--model_args"].split(",")[0].partition("=")[2]
    assert (Path(model) / "config.json").is_file()
    if task == "broken":
        print("Traceback ...\nValueError: Tasks not found: broken")
        return
    questions = [{"acc": 1.0}] * 3
    file = write_lmms_eval(folder, {task: ({"acc": 1.0}, questions)}, model_name=model)
    if task == "killed":
        file.unlink()
        os._exit(9)
