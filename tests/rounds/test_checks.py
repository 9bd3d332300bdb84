"""The prompts of rounds and those that are measured have no image in common, of several none."""

from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from perpo_pipeline.errors import InputError
from perpo_pipeline.rounds.checks import check_apart
from perpo_pipeline.store.schemas import PROMPTS


def prompts(*rows: tuple[str, ...]) -> Any:
    """Prompts with these images each, the first of which is that of its boxes."""
    found = [
        {
            "prompt_id": "+".join(images),
            "prompt": "where?",
            "place": "",
            "image_sha256": own,
            "more_image_facts": [
                {"sha256": one, "width": 1, "height": 1, "notes": []} for one in others
            ]
            or None,
        }
        for images in rows
        for own, *others in [images]
    ]

    def table(columns: list[str]) -> pa.Table:
        schema = pa.schema([PROMPTS.columns.field(name) for name in columns])
        return pa.Table.from_pylist(found, schema)

    return SimpleNamespace(table=table)


def test_any_image_in_common_is_refused() -> None:
    config: Any = SimpleNamespace(
        sample=SimpleNamespace(split="train"),
        eval=SimpleNamespace(allow_train_images=False),
        rounds=SimpleNamespace(select_on=None, report_on="test"),
    )
    train = prompts(("a",), ("b", "c"))
    check_apart(config, {"train": train, "test": prompts(("d", "e"), ("f",))})
    others = prompts(("d", "c"), ("f",), ("a", "b"))
    with pytest.raises(
        InputError, match=r"2 prompts of 'test' have the image .* first prompt d\+c"
    ):
        check_apart(config, {"train": train, "test": others})
