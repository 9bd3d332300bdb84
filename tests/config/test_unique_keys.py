"""Whatever cannot be read as YAML is one type of error, which names the value."""

from datetime import date
from pathlib import Path

import pytest
import yaml

from perpo_pipeline.config.unique_keys import load_yaml, read_mapping
from perpo_pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 2024-02-30", "'2024-02-30' is no timestamp (day is out of range for month); put it"),
        ("a: [1, !!timestamp abc]", "'abc' is no timestamp; put it in quotes if it is text"),
        ("!!timestamp abc: 1", "'abc' is no timestamp;"),
        ("a: 0b_", "'0b_' is no int (invalid literal for int() with base 2);"),
        ("a: !!int abc", "'abc' is no int"),
        ("a: !!int ''", "'' is no int;"),
        ("a: !!bool abc", "'abc' is no bool;"),
        ("a: !!map [b]", "what stands here is no map;"),
        ("a: " + "1" * 5000, f"'{'1' * 60}' is no int (Exceeds the limit (4300 digits)"),
        ("a: 0x" + "f" * 5000, "is no int (Exceeds the limit (4300 digits)"),
        ("[" * 500, "it is nested too deeply"),
        ("a: {b: 1, b: 2}", "the key 'b' is given twice"),
    ],
)
def test_what_cannot_be_read_is_one_type_of_error(text: str, message: str) -> None:
    with pytest.raises(yaml.YAMLError) as caught:
        load_yaml(text)
    assert message in str(caught.value)


def test_the_rest_is_read_as_it_was() -> None:
    found = load_yaml("{a: '2024-02-30', 1: [0x1F, yes], d: 2024-02-29}")
    assert found == {"a": "2024-02-30", "1": [31, True], "d": date(2024, 2, 29)}


def test_a_folder_is_no_file_to_correct(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the sweep file cannot be read: Is a directory") as found:
        read_mapping(tmp_path, kind="sweep file", otherwise="", contents="", example="")
    assert found.value.fix == "name a sweep file"
