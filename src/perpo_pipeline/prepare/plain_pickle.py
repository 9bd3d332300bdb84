"""Reads pickles of plain data, from Python 2 as well, and runs nothing that is in them.

A pickle may name any function and call it. This reader returns only containers, texts, numbers,
None and NumPy scalars. It decodes the scalars itself, without NumPy, and refuses all other names.
"""

import io
import pickle
import struct
from pathlib import Path
from typing import Any

from perpo_pipeline.errors import InputError
from perpo_pipeline.json_files import missing_file

# What the unpickler raises on damaged data.
_DAMAGED = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    ImportError,
    OverflowError,
    MemoryError,
    RecursionError,
    struct.error,
)
_NUMPY = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
_SCALARS = {
    "b1": "?",
    "i1": "b",
    "i2": "h",
    "i4": "i",
    "i8": "q",
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
    "f2": "e",
    "f4": "f",
    "f8": "d",
}


def load_plain_pickle(path: Path) -> Any:
    """The data of a pickle; 8-bit strings of Python 2 are read as Latin-1.

    Raises `ConfigError` if the file is missing, `InputError` if it is damaged or names anything but
    plain data; nothing in it is run.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise missing_file(path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    except _Refused as refused:
        raise InputError(
            f"the pickle names {refused}, which plain data does not need and which could run "
            "code; it was not called",
            where=str(path),
            fix="do not use this file; fetch it again from its authors",
        ) from None
    except _DAMAGED as error:
        raise InputError(
            f"the pickle cannot be read: {type(error).__name__}: {error}",
            where=str(path),
            fix="fetch the file again, whole",
        ) from error


class _Refused(Exception):
    """The name that a pickle must not use."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "numpy" and name == "dtype":
            return _ScalarType
        if module in _NUMPY and name == "scalar":
            return _scalar
        if (module, name) == ("_codecs", "encode"):  # Python 3's bytes in protocols 0 to 2
            return _latin1
        raise _Refused(f"{module}.{name}")


class _ScalarType:
    """The part of NumPy's dtype that a scalar needs."""

    def __init__(self, code: str, *_: Any) -> None:
        self.format, self.order = _SCALARS[str(code)], "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _scalar(kind: _ScalarType, data: str | bytes) -> Any:
    raw = data.encode("latin1") if isinstance(data, str) else data
    (value,) = struct.unpack(kind.order + kind.format, raw)
    return value


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise _Refused(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")
