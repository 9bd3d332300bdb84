"""Checks that misbehave, for the tests of `perpo doctor --gpu`; they import no torch."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from perpo_pipeline.doctor.finding import Finding
from perpo_pipeline.errors import ConfigError

MARK = "CHECKS_OF_DOCTOR_MARK"


def fine(device: str) -> Finding:
    print("this must not reach the table")
    return Finding("ok", f"on {device}", figures={"tflops": 1.5})


def refuses(device: str) -> Finding:
    raise ConfigError("no bfloat16", where="card 0", fix="buy another")


def raises(device: str) -> Finding:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def crashes(device: str) -> Finding:
    os.kill(os.getpid(), signal.SIGSEGV)
    return Finding("ok", "never")


def hangs(device: str) -> Finding:
    """With a child, which must end too."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    Path(os.environ[MARK]).write_text(str(child.pid))
    time.sleep(60)
    return Finding("ok", "never")


def lacks(device: str) -> Finding:
    return Finding("skipped", "no such package", "pip install it")
