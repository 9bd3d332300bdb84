"""A synthetic run as the browse room opens it, with answers and questions that try to do harm."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import synthetic_run

from perpo_pipeline.browse.versions import Artifacts, open_artifacts
from perpo_pipeline.browse.views import View, open_views
from perpo_pipeline.run import Run

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">\u202e\u2066\x00\x1b[31m&amp;'
"""Text that would run, turn lines around, or hide."""
QUESTION = 'where is <b onclick="alert(3)">{index}</b>?'


@dataclass(frozen=True)
class Browsed:
    """A run as it is browsed."""

    run: Run
    artifacts: Artifacts
    views: dict[str, View]


def browse_run(run: Run) -> Browsed:
    artifacts = open_artifacts(run.config)
    return Browsed(run, artifacts, open_views(artifacts, "perpo"))


def make_hostile_run(root: Path, **config: Any) -> Run:
    """Every answer without a box is hostile, and so is every question."""
    answer = synthetic_run._answer

    def hostile(*arguments: Any) -> str:
        found = answer(*arguments)
        return f"{HOSTILE} {found}" if found.startswith("I cannot") else found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic_run, "_answer", hostile)
        return make_unmeasured_run(root, expression=QUESTION, **config)


def make_unmeasured_run(root: Path, **config: Any) -> Run:
    """A run whose metrics have no rows: no page needs them, and they take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic_run, "summarise", lambda *_, **__: [])
        return synthetic_run.make_synthetic_run(root, **config)
