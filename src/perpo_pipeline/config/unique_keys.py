"""YAML files: a key given twice, which YAML would silently overwrite, is refused."""

from pathlib import Path

import yaml

from perpo_pipeline.config.section import Json
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.suggestions import closest_path


class UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that raises MarkedYAMLError for a key given twice."""


def _unique_mapping(loader: UniqueKeyLoader, node: yaml.MappingNode) -> Json:
    seen: set[str] = set()
    for key_node, _ in node.value:
        key = str(loader.construct_object(key_node))
        if key in seen:
            raise yaml.MarkedYAMLError(
                problem=f"the key '{key}' is given twice", problem_mark=key_node.start_mark
            )
        seen.add(key)
    return {str(key): value for key, value in loader.construct_mapping(node, deep=True).items()}


UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def read_mapping(path: Path, *, kind: str, otherwise: str, contents: str, example: str) -> Json:
    """The mapping in a YAML file; raises `ConfigError` where there is none.

    kind: what the file is ("sweep file"). otherwise: the advice where no file has a similar name.
    contents: what it must contain ("a mapping"), and `example` shows one.
    """
    try:
        text = path.read_text(encoding="utf-8")
        raw = yaml.load(text, Loader=UniqueKeyLoader)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError:
        near = closest_path(path)
        raise ConfigError(
            f"no such {kind}",
            where=str(path),
            fix=f"did you mean {near}?" if near else otherwise,
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"the file cannot be read as YAML: {error}", where=str(path), fix="correct the file"
        ) from error
    if not isinstance(raw, dict):
        raise ConfigError(
            f"the file does not contain {contents}", where=str(path), fix=f"see {example}"
        )
    return raw
