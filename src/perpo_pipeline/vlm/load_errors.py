"""What is wrong with a model that transformers cannot load, and what to do: one message for each.

transformers' own errors name settings of its functions, or leave the missing package to its log.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

from perpo_pipeline.errors import InputError, first_line
from perpo_pipeline.vlm.files import ResolvedModel

_NEEDS = (  # transformers' sentences about a package that is not installed
    re.compile(r"requires the (\w+) library but it was not found"),
    re.compile(r"Missing optional dependencies: ([\w-]+)"),
)
_NO_PIL = re.compile(r"image processor classes: torchvision: (\w+)\.")


@contextmanager
def load_errors_explained(resolved: ResolvedModel) -> Iterator[None]:
    """Raise what the library raises while it loads `resolved` as InputError."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        what, fix = _explain(error, resolved)
        raise InputError(
            f"Model {resolved.model_id!r} cannot be loaded: {what}",
            where=str(resolved.path),
            fix=fix,
        ) from error


def no_pil_version(name: str) -> tuple[str, str]:
    """What is wrong with an image processor that needs torchvision, and what to do."""
    return (
        f"its image processor {name} has no PIL version",
        "use a model whose image processor has one: pixels must be the same everywhere",
    )


def _explain(error: Exception, resolved: ResolvedModel) -> tuple[str, str]:
    if code := _own_code(resolved):
        return (
            f"its config.json asks for Python code of its own ({code}), which perpo never runs",
            "use a model whose code is part of transformers, or a newer transformers",
        )
    if "ignore_mismatched_sizes" in str(error):
        return (
            "its weights have other shapes than its config.json says; transformers' report above "
            "names them",
            "take config.json and weights from the same model",
        )
    if found := _NO_PIL.search(str(error)):
        return no_pil_version(found[1])
    if package := _missing_package(error):
        return (
            f"it needs the package {package}, which is not installed "
            f"({first_line(error).split('. ')[0].rstrip('.')})",
            f"install {package}, in the version that belongs to your torch",
        )
    return first_line(error), "give a complete vision-language model in transformers' own layout"


def _own_code(resolved: ResolvedModel) -> str | None:
    """The file of code that config.json names, if transformers has no such model itself."""
    from transformers import CONFIG_MAPPING

    try:
        config = json.loads((resolved.path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    code = config.get("auto_map") if isinstance(config, dict) else None
    if not isinstance(code, dict) or not code or config.get("model_type") in CONFIG_MAPPING:
        return None
    return f"{str(next(iter(code.values()))).rsplit('.', 1)[0]}.py"


def _missing_package(error: BaseException | None) -> str | None:
    """The package whose absence is the error's cause."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            package = error.name.split(".")[0]
            if package != "transformers":
                return package
        for sentence in _NEEDS:
            if found := sentence.search(str(error)):
                return found[1].lower()
        error = error.__cause__ or error.__context__
    return None
