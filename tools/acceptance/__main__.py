"""`python -m tools.acceptance MODEL`: exit code 0 if all parts passed, 1 if one failed."""

import argparse
import sys
from pathlib import Path

from perpo_pipeline import advice
from perpo_pipeline.errors import PerpoError
from tools.acceptance import __doc__ as about
from tools.acceptance.stages import Rejected, accept, find_acceptance

FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130


def main(argv: list[str]) -> int:
    """Print the result of each part, and return the exit code."""
    parser = argparse.ArgumentParser("make acceptance", description=about)
    parser.add_argument("model", help="llava15, qwen25-vl, qwen3-vl or testbed")
    parser.add_argument("--data", type=Path, help="folder with refer/ and coco/train2014/")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    given = parser.parse_args(argv)
    advice.begin(argv)
    try:
        for line in accept(find_acceptance(given.model, given.data, given.set)):
            print(f"acceptance {given.model}: {line}", flush=True)
    except Rejected as rejected:
        print(f"acceptance {given.model}: {rejected}")
        return FAILED
    except PerpoError as error:
        print(f"acceptance: error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("acceptance: interrupted; the same command goes on from there", file=sys.stderr)
        return INTERRUPTED
    print(f"acceptance {given.model}: passed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
