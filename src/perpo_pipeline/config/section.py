"""What the sections of a run's file are made of; config.py puts them together."""

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Json = dict[str, Any]
NAME_PATTERN, WORD_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$", r"^\S+$"
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=80)]


def _no_truth_value(value: Any) -> Any:
    """YAML's true would pass as 1."""
    if isinstance(value, bool):
        raise ValueError("Input should be a number, not true or false")
    return value


Int = Annotated[int, BeforeValidator(_no_truth_value)]
Float = Annotated[float, BeforeValidator(_no_truth_value)]


class Section(BaseModel):
    """A section of the run's file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    operational: ClassVar[frozenset[str]] = frozenset()

    def result_settings(self) -> Json:
        """The settings that change the result, for the fingerprint."""
        return self.model_dump(mode="json", exclude=set(self.operational))
