"""YAML: one way to read it, which refuses a key given twice instead of overwriting it silently."""

import re
from pathlib import Path
from typing import Any

import yaml

from perpo_pipeline.config.section import Json
from perpo_pipeline.errors import ConfigError, what_to_check
from perpo_pipeline.suggestions import closest_path

LONGEST_SHOWN = 60  # characters of a value


def load_yaml(text: str) -> Any:
    """The value of a YAML text; raises `yaml.YAMLError` whatever is wrong with the text."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


class _Loader(yaml.SafeLoader):
    """SafeLoader that raises MarkedYAMLError for a key given twice, and for every bad value."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node; PyYAML's own errors for a bad one are of many types."""
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int):
                str(value)  # Python refuses to write a number of many digits
        except (ValueError, LookupError, AttributeError, OverflowError, TypeError) as error:
            raise _bad_value(node, error) from error
        return value


def _bad_value(node: yaml.Node, error: Exception) -> yaml.MarkedYAMLError:
    is_scalar = isinstance(node, yaml.ScalarNode)
    shown = repr(node.value[:LONGEST_SHOWN]) if is_scalar else "what stands here"
    # Errors of other types speak of PyYAML's code, not of the value.
    says = isinstance(error, ValueError | OverflowError) and is_scalar
    why = f" ({re.split('[:;]', str(error))[0]})" if says else ""
    return yaml.MarkedYAMLError(
        problem=f"{shown} is no {node.tag.rpartition(':')[2]}{why}; put it in quotes if it is text",
        problem_mark=node.start_mark,
    )


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> Json:
    seen: set[str] = set()
    for key_node, _ in node.value:
        key = str(loader.construct_object(key_node))
        if key in seen:
            raise yaml.MarkedYAMLError(
                problem=f"the key '{key}' is given twice", problem_mark=key_node.start_mark
            )
        seen.add(key)
    return {str(key): value for key, value in loader.construct_mapping(node, deep=True).items()}


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def read_mapping(path: Path, *, kind: str, otherwise: str, contents: str, example: str) -> Json:
    """The mapping in a YAML file; raises `ConfigError` where there is none.

    kind: what the file is ("sweep file"). otherwise: the advice where no file has a similar name.
    contents: what it must contain ("a mapping"), and `example` shows one.
    """
    try:
        raw = load_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = closest_path(path)
        raise ConfigError(
            f"no such {kind}",
            where=str(path),
            fix=f"did you mean {near}?" if near else otherwise,
        ) from None
    except OSError as error:
        fix = f"name a {kind}" if path.is_dir() else what_to_check(error)
        raise ConfigError(
            f"the {kind} cannot be read: {error.strerror or error}", where=str(path), fix=fix
        ) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"the file cannot be read as YAML: {error}", where=str(path), fix="correct the file"
        ) from error
    if not isinstance(raw, dict):
        raise ConfigError(
            f"the file does not contain {contents}", where=str(path), fix=f"see {example}"
        )
    return raw
