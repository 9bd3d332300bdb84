"""Records the logs in `recorded/`: lmms-eval on a run's models, on 24 questions of our own.

    python tests/evaluate/harness/record.py RUN.yaml PYTHON_OF_LMMS_EVAL

RUN.yaml is a finished run (prepare to train) with the models base and perpo. Paths of the machine
are taken out of the logs; nothing else is changed.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from perpo_pipeline.config.file import load_config
from perpo_pipeline.evaluate.harness.run_lmms_eval import harness_evaluation
from perpo_pipeline.store.artifacts import open_version

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lmms_eval_task import TASK, write_task

RECORDED = Path(__file__).parent / "recorded"
QUESTIONS = 24


def main(config: str, python: str) -> None:
    """Run, and copy the logs of both models."""
    shutil.rmtree(RECORDED, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        write_task(Path(folder) / "task", QUESTIONS)
        include = f"--include_path {Path(folder).resolve() / 'task'}"
        command = [sys.executable, "-m", "perpo_pipeline.cli", "eval", "--config", config]
        command += ["--harness", "lmms-eval", "--tasks", TASK, "--harness-python", python]
        subprocess.run([*command, "--harness-args", include], check=True)
        run_dir = load_config(Path(config)).run_dir
        for model in ("base", "perpo"):
            version = open_version(run_dir / "harness" / harness_evaluation(model, TASK))
            for file in (version.path / "logs").rglob("*.json*"):
                text = file.read_text(encoding="utf-8")
                for path in (str(Path(folder).resolve()), str(run_dir.resolve())):
                    text = text.replace(path, "/models")
                text = text.replace(str(Path.cwd()), "/models")
                (RECORDED / model).mkdir(parents=True, exist_ok=True)
                (RECORDED / model / file.name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
