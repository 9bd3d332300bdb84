"""Two runs that all tests of the browse room share: boxes, and pages of text."""

from typing import Any

import pytest
from browsed_run import Browsed, browse_run, make_hostile_run, make_unmeasured_run


@pytest.fixture(scope="session")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Browsed:
    return browse_run(make_hostile_run(tmp_path_factory.mktemp("boxes"), num_prompts=60))


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Browsed:
    root = tmp_path_factory.mktemp("texts")
    kind: dict[str, Any] = {"task": "ocr", "pages": True, "min_margin": 0.04}
    return browse_run(make_unmeasured_run(root, num_prompts=8, methods=("perpo",), **kind))
