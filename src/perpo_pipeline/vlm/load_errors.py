"""What is wrong with a model that transformers cannot load, and what to do: one message for each.

transformers' own errors name settings of its functions, or leave the missing package to its log.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from perpo_pipeline import advice
from perpo_pipeline.errors import InputError, PerpoError, first_line
from perpo_pipeline.vlm.files import ResolvedModel
from perpo_pipeline.vlm.own_code import file_of, named_code

_NEEDS = (  # transformers' sentences about a package that is not installed
    re.compile(r"requires the (\w+) library but it was not found"),
    re.compile(r"Missing optional dependencies: ([\w-]+)"),
)
_NO_CLASS = "for this kind of AutoModel"
_AUTO_CLASS = "AutoModelForImageTextToText"
_NO_PIL = re.compile(r"image processor classes: torchvision: (\w+)\.")


@contextmanager
def load_errors_explained(resolved: ResolvedModel) -> Iterator[None]:
    """Raise what the library raises while it loads `resolved` as InputError.

    Code of the model's own may raise anything.
    """
    from safetensors import SafetensorError

    known = (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError)
    try:
        yield
    except PerpoError:
        raise
    except Exception as error:
        if not resolved.own_code and not isinstance(error, known):
            raise
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
    if code := _refused_code(resolved, error):
        return (
            f"its {code[0]} asks for Python code of its own ({code[1]}), which perpo never runs "
            "unless model.trust_remote_code is true",
            "use a model whose code is part of transformers, or a newer transformers; or read that "
            f"code, and set model.trust_remote_code: true ({advice.page('models')})",
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
    if resolved.own_code and _NO_CLASS in str(error):
        named = ", ".join(named_code(resolved.path))
        return (
            f"its own code has no class for {_AUTO_CLASS}, only {named}",
            f"use a version of the model with {_AUTO_CLASS} in auto_map of its config.json",
        )
    kind = f"{type(error).__name__}: " if resolved.own_code else ""
    return (
        f"{kind}{first_line(error)}",
        "give a complete vision-language model in transformers' own layout",
    )


def _refused_code(resolved: ResolvedModel, error: Exception) -> tuple[str, str] | None:
    """A file of settings and the file of code that it names, if that is why loading fails.

    transformers has some of these models itself, and then needs no code of theirs.
    """
    if resolved.own_code or "trust_remote_code" not in str(error):
        return None
    return next(((name, file_of(one)) for one, name in named_code(resolved.path).items()), None)


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
