"""What perpo asks of the machine before it computes."""

import os
import subprocess
import sys

import pytest

# The command line must not import torch before it has chosen how OpenMP's threads wait.
SCRIPT = """
import gc, os, sys
import perpo_pipeline.cli as cli
assert "torch" not in sys.modules
try:
    cli.main(["--help"])
except SystemExit:
    pass
print("policy", os.environ["OMP_WAIT_POLICY"])
print("collections:", gc.isenabled(), gc.get_threshold())
"""


@pytest.mark.parametrize(("chosen", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_wait_passively_unless_the_user_chose_otherwise_and_garbage_is_rarely_looked_for(
    chosen: str | None, expected: str
) -> None:
    variables = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    if chosen is not None:
        variables["OMP_WAIT_POLICY"] = chosen
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=variables, capture_output=True, text=True, check=True
    )
    assert f"policy {expected}" in done.stdout
    assert "collections: True (10000, 20, 20)" in done.stdout
