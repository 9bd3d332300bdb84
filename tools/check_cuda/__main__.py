"""`make check-cuda`: do the compiled decoder layers compile for a card, and fit into it?

    python -m tools.check_cuda              for an H100 or H200 (sm_90)
    python -m tools.check_cuda --card sm_89 for an RTX 4090
    python -m tools.check_cuda llava any    only the cases with these words

Needs a CUDA build of torch with its Triton, but no card. Exits with 1 if a graph does not compile
or needs more shared memory than the card has, and with 2 if this torch cannot compile for CUDA.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

# Before torch is imported: it must see neither a card nor compile in other processes.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

from tools.check_cuda.cards import CARDS, Card, PretendedCard
from tools.check_cuda.layers import Case, cases

if TYPE_CHECKING:
    from tools.check_cuda.graphs import Compiler


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile the cases and print a line for each of their graphs."""
    parser = argparse.ArgumentParser(prog="python -m tools.check_cuda", description=__doc__)
    parser.add_argument("words", nargs="*", help="compile only the cases with these words")
    parser.add_argument("--card", choices=CARDS, default="sm_90", help="default: sm_90")
    options = parser.parse_args(arguments)
    if missing := missing_parts():
        print(f"check-cuda: {missing}", file=sys.stderr)
        return 2
    chosen = [case for case in cases() if all(word in str(case) for word in options.words)]
    if not chosen:
        print(f"check-cuda: no case has the words {' '.join(options.words)}", file=sys.stderr)
        return 2
    return compile_all(options.card, chosen)


def missing_parts() -> str:
    """What this Python lacks to compile for CUDA, and what to do; empty if nothing."""
    import torch

    advice = (
        "install torch's CUDA build and this package into an environment of their own, and name "
        "it: make check-cuda CUDA_VENV=DIR"
    )
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is not a CUDA build: {advice}"
    if find_spec("triton") is None:
        return f"torch {torch.__version__} has no Triton: {advice}"
    return ""


def make_compiler(card: Card) -> "Compiler":
    """The compiler for a card; torch must have no part of it imported before."""
    pretended = PretendedCard(card)
    from tools.check_cuda.graphs import Compiler

    return Compiler(pretended)


def compile_all(target: str, chosen: Sequence[Case]) -> int:
    """Print a table of the graphs as they are compiled; 1 if one of them would not run."""
    import torch

    card = CARDS[target]
    compiler = make_compiler(card)
    print(
        f"torch {torch.__version__}, CUDA {torch.version.cuda}, for {target} ({card.name}): "
        f"{card.shared_memory:,} B of shared memory per block"
    )
    print(f"{'layer':<56}{'graph':<11}{'kernels':>8}{'shared memory':>15}{'seconds':>9}")
    faults = 0
    for case in chosen:
        for graph in compiler.compile(case):
            fault = graph.fault(card)
            faults += bool(fault)
            print(
                f"{case!s:<56}{graph.kind:<11}{len(graph.kernels):>8}"
                f"{graph.shared_memory:>13,} B{graph.seconds:>9.1f}  {fault or 'ok'}",
                flush=True,
            )
    print(f"{faults} graphs would not run" if faults else "all graphs compile and fit")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
