"""One check in a process of its own: a hang, a crash or a full memory ends that check alone.

The process gets a function's dotted name, a device and a file for the result:
`python -m perpo_pipeline.doctor.running perpo_pipeline.doctor.card:memory cuda FILE`. It is the
leader of a process group, which is killed as a whole when the time is up.
"""

import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import perpo_pipeline
from perpo_pipeline.doctor.finding import Finding
from perpo_pipeline.errors import PerpoError

LAST_WORDS = 300  # characters of the last line of stderr that a message repeats


@dataclass(frozen=True)
class Check:
    """A function `work(device) -> Finding`, by its dotted name, and how it is run.

    `limit_s` is the longest time; `fix` is what to do if the process crashes or hangs; `python` the
    interpreter, if it is not this one.
    """

    work: str
    limit_s: float
    fix: str
    python: str = sys.executable


def run_check(check: Check, device: str) -> tuple[Finding, float]:
    """Run the check in a process of its own; returns what it found, and its seconds."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="perpo-doctor-") as folder:
        result, errors = Path(folder) / "result.json", Path(folder) / "stderr"
        with errors.open("wb") as sink:
            process = subprocess.Popen(
                [check.python, "-m", __name__, check.work, device, str(result)],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=_environment(),
                start_new_session=True,
            )
            try:
                code = process.wait(check.limit_s)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end_group(process)
        if result.is_file():
            found = Finding(**json.loads(result.read_text(encoding="utf-8")))
        else:
            found = _without_result(check, code, errors.read_text("utf-8", errors="replace"))
    return found, time.monotonic() - start


def _environment() -> dict[str, str]:
    """The process finds this package where it is not installed, and asks no hub."""
    source = str(Path(perpo_pipeline.__file__).parents[1])
    paths = [source, os.environ.get("PYTHONPATH", "")]
    offline = {"HF_HUB_OFFLINE": "1", "PYTHONFAULTHANDLER": "1"}
    return os.environ | offline | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of the check, its own children too."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _without_result(check: Check, code: int | None, errors: str) -> Finding:
    """What to report of a process that hung or crashed."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    if code is None:
        what = f"no result after {check.limit_s:g} s"
    elif code < 0:
        what = f"crashed: {signal.Signals(-code).name}"
        lines = [line for line in lines if line.startswith("Fatal")] or lines
    else:
        what = f"ended with exit code {code}"
    last = lines[-1][-LAST_WORDS:] if lines and code is not None else ""
    return Finding("failed", what + (f": {last}" if last else ""), check.fix)


def main(work: str, device: str, result: str) -> None:
    """In the process of the check: call it, and write what it found."""
    try:
        found: Finding = pkgutil.resolve_name(work)(device)
    except PerpoError as error:
        what, where, fix = error.parts()
        found = Finding("failed", what + (f" ({where})" if where else ""), fix)
    whole = Path(result + ".part")
    whole.write_text(json.dumps(asdict(found)), encoding="utf-8")
    whole.rename(result)


if __name__ == "__main__":
    main(*sys.argv[1:])
