"""YAML that refuses a key given twice, which YAML would silently overwrite."""

import yaml

from perpo_pipeline.config.section import Json


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
