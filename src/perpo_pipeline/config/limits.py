"""The smallest and the largest value that a setting takes, read from the model of its section."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from perpo_pipeline.config.run import RunConfig

Limits = tuple[float | None, float | None]


def limits_of(key: str, config: RunConfig) -> Limits:
    """The smallest and the largest value of a setting of this run, by its dotted key.

    None where there is no such value: without a limit, and for a number with a fraction that must
    lie above or below a limit, which it may approach as it likes.
    """
    field = _field(key, config)
    if field is None:
        return None, None
    found = [*field.metadata, *_metadata(field.annotation)]
    step = 1 if int in _types(field.annotation) else None
    low = _first(found, "ge"), _first(found, "gt")
    high = _first(found, "le"), _first(found, "lt")
    return _inside(*low, step), _inside(*high, None if step is None else -step)


def _inside(at: float | None, beyond: float | None, step: int | None) -> float | None:
    """A limit that may be reached, or the whole number next to one that may not."""
    return beyond + step if at is None and beyond is not None and step is not None else at


def _first(metadata: list[Any], name: str) -> float | None:
    values = (getattr(item, name, None) for item in metadata)
    return next((value for value in values if value is not None), None)


def _field(key: str, config: RunConfig) -> FieldInfo | None:
    section, *parts = key.split(".")
    at: Any = getattr(config, section, None)
    if section == "train":
        at = config.train.shared
    for part in parts[:-1]:
        at = at.get(part) if isinstance(at, Mapping) else getattr(at, part, None)
    return type(at).model_fields.get(parts[-1]) if parts and isinstance(at, BaseModel) else None


def _metadata(kind: Any) -> Iterator[Any]:
    """What is annotated anywhere in a type."""
    if get_origin(kind) is Annotated:
        yield from kind.__metadata__
    for inside in get_args(kind) if get_origin(kind) is not dict else ():
        yield from _metadata(inside)


def _types(kind: Any) -> set[Any]:
    """The plain types of a type's alternatives."""
    inside = get_args(kind)
    if not inside:
        return {kind}
    parts = inside[:1] if get_origin(kind) is Annotated else inside
    return set().union(*map(_types, parts)) if get_origin(kind) is not dict else set()
