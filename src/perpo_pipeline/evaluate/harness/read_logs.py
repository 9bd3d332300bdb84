"""Finds out which harness wrote the logs in a folder, and reads them."""

import re
from collections.abc import Sequence
from pathlib import Path

from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.evaluate.harness import lmms_eval_logs, vlmevalkit_logs
from perpo_pipeline.evaluate.harness.logs import HarnessLogs

EXPECTED = (
    "lmms-eval's *_results.json (with *_samples_*.jsonl beside it), or VLMEvalKit's *_acc.csv or "
    "*_score.csv"
)
DATED = re.compile(r"[0-9]{8}_[0-9]{6}")


def read_logs(path: Path) -> HarnessLogs:
    """Read the finished logs of one model: a folder, or a file of lmms-eval's results.

    Raises ConfigError for a missing path, InputError for a folder with no finished logs or with
    those of both harnesses, and as the readers of the harnesses do.
    """
    if not path.exists():
        raise ConfigError(
            "no such folder", where=str(path), fix="give the folder of a harness's finished logs"
        )
    vlmevalkit = vlmevalkit_logs.result_files(path)
    lmms_eval = _without_questions_of(vlmevalkit, lmms_eval_logs.results_files(path))
    if lmms_eval and vlmevalkit:
        raise InputError(
            f"logs of two harnesses: {lmms_eval[0].name} and {vlmevalkit[0].name}",
            where=str(path),
            fix="give the folder of one harness",
        )
    unfinished = lmms_eval_logs.unfinished_files(path)
    if unfinished:
        raise InputError(
            f"lmms-eval has not finished: {unfinished[0].name} has no *_results.json beside it",
            where=str(path),
            fix="let it finish, or remove this file",
        )
    if lmms_eval:
        return lmms_eval_logs.read_lmms_eval(lmms_eval)
    if vlmevalkit:
        return vlmevalkit_logs.read_vlmevalkit(vlmevalkit)
    raise InputError("no finished logs of a harness", where=str(path), fix=f"give {EXPECTED}")


def _without_questions_of(vlmevalkit: Sequence[Path], lmms_eval: Sequence[Path]) -> list[Path]:
    """The files of lmms-eval's results: VLMEvalKit may call its questions *_results.json, too."""
    folders = {file.parent for file in vlmevalkit}
    return [file for file in lmms_eval if file.parent not in folders or DATED.match(file.name)]
