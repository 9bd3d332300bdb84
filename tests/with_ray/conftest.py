"""Tests with a real Ray cluster on this machine: `make test-distributed`."""

import importlib.util
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.distributed)


@pytest.fixture(scope="session", autouse=True)
def _only_where_ray_is() -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs Ray: make test-distributed")
