"""Pickles of plain data, also Python 2's; nothing in a pickle is run."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepare.refer_tree import python2_pickle

from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.prepare.plain_pickle import load_plain_pickle

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(), inner)
        | st.tuples(inner)
        | st.sets(st.integers())
    ),
    max_leaves=20,
)


def written(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "refs(unc).p"
    path.write_bytes(data)
    return path


class Exploit:
    """Unpickling calls `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_calls_a_function_is_refused_by_its_name_and_nothing_is_run(
    tmp_path: Path, protocol: int
) -> None:
    marker = tmp_path / "marker"
    data = pickle.dumps([{"ref_id": 1}, Exploit(os.mkdir, str(marker))], protocol)
    with pytest.raises(InputError, match=r"names posix\.mkdir") as caught:
        load_plain_pickle(written(tmp_path, data))
    assert "refs(unc).p" in str(caught.value) and not marker.exists()
    pickle.loads(data)  # noqa: S301 (the attack itself does work)
    assert marker.is_dir()


@pytest.mark.parametrize(
    ("exploit", "name"),
    [
        (Exploit(eval, "1"), "builtin__.eval"),
        (Exploit(getattr, 1, "real"), "builtin__.getattr"),
        (Exploit(np.array, [1]), "array"),
        (Path("x"), "pathlib"),
    ],
)
def test_anything_but_plain_data_is_refused(tmp_path: Path, exploit: Any, name: str) -> None:
    with pytest.raises(InputError, match="it was not called") as caught:
        load_plain_pickle(written(tmp_path, pickle.dumps(exploit, 2)))
    assert name in str(caught.value)


def test_only_latin_1_is_encoded(tmp_path: Path) -> None:
    data = b"c_codecs\nencode\n(V616263\nVhex\ntR."
    with pytest.raises(InputError, match=r"_codecs\.encode to 'hex'"):
        load_plain_pickle(written(tmp_path, data))


@pytest.mark.parametrize("protocol", [0, 2])
@pytest.mark.parametrize("kind", ["i4", "i8", "u1", "f4", "f8", ">i4", ">f8", "?"])
def test_numpys_scalars_come_out_as_numbers(tmp_path: Path, protocol: int, kind: str) -> None:
    value = np.dtype(kind).type(1.5)
    data = pickle.dumps({"ann_id": np.array([value], dtype=kind)[0]}, protocol)
    found = load_plain_pickle(written(tmp_path, data))["ann_id"]
    assert found == value.item() and type(found) is type(value.item())


@pytest.mark.parametrize("protocol", [0, 2])
def test_python_2s_strings_are_read_as_latin_1_and_its_unicode_as_it_is(
    tmp_path: Path, protocol: int
) -> None:
    refs = [{"sent": "caf\xe9 'left' \"x\"", "raw": "caf\u0119", "ids": [1, -2, 10**15]}]
    assert load_plain_pickle(written(tmp_path, python2_pickle(refs, protocol))) == refs
    if protocol == 0:
        assert python2_pickle(["\xe9"], 0) == b"(lS'\\xe9'\na."  # as Python 2.7 writes it


@settings(max_examples=60, deadline=None)
@given(value=PLAIN, protocol=st.sampled_from(range(pickle.HIGHEST_PROTOCOL + 1)))
def test_plain_data_comes_back_from_every_protocol(
    tmp_path_factory: pytest.TempPathFactory, value: Any, protocol: int
) -> None:
    value = _without_sets(value) if protocol < 4 else value  # a set is a call in the older ones
    path = written(tmp_path_factory.mktemp("p"), pickle.dumps(value, protocol))
    assert load_plain_pickle(path) == value


def _without_sets(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    if isinstance(value, dict):
        return {key: _without_sets(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_sets(one) for one in value)
    return value


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_pickle_is_one_clear_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = python2_pickle([{"ref_id": 1, "sent": "left", "ids": [1, 2]}], 2)
    torn = bytearray(whole[: data.draw(st.integers(0, len(whole) - 1))])
    if torn:
        torn[data.draw(st.integers(0, len(torn) - 1))] = data.draw(st.integers(0, 255))
    path = written(tmp_path_factory.mktemp("p"), bytes(torn))
    try:
        load_plain_pickle(path)
    except InputError as error:
        assert str(path) in str(error)


def test_a_missing_file_is_a_fault_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_plain_pickle(tmp_path / "none.p")
