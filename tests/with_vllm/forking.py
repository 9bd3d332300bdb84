"""vLLM's server and its engine, forked where a user's are new Pythons.

What is spared is a new Python for each, which takes ten seconds of processor time for its imports.
"""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from unittest.mock import patch

from forked_commands import ForkedCommand

# What `vllm serve` runs; the program itself asks for the version of a package `vllm`, and the CPU
# build's name is another.
API_SERVER = "vllm.entrypoints.openai.api_server"


def start_server(
    arguments: Sequence[str], *, environment: Mapping[str, str], log: Path
) -> ForkedCommand:
    """Start vLLM's server in a process group of its own; its engine is forked from it."""
    return ForkedCommand(
        _serve, [arguments], folder=Path.cwd(), environment=environment, out=log, err=log
    )


def _serve(arguments: Sequence[str]) -> None:
    from vllm.v1.engine import utils

    os.setsid()
    sys.argv = [API_SERVER, *arguments]
    forks = partial(multiprocessing.get_context, "fork")
    with patch.object(utils, "get_mp_context", forks):
        runpy.run_module(API_SERVER, run_name="__main__")
