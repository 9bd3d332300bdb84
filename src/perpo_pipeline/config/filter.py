"""The settings of filtering."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Ge, Gt, Le
from pydantic import Field, model_validator

from perpo_pipeline import advice
from perpo_pipeline.config.by_task import ByTask
from perpo_pipeline.config.section import Float, Int, Section, conflict

Share = Annotated[Float, Ge(0), Le(1)]
AtLeastOne = Annotated[Int, Gt(0)]


class FilterConfig(Section):
    """Which lists are worth learning from."""

    operational: ClassVar[frozenset[str]] = frozenset({"earlier"})  # its content counts instead
    counted_by_content: ClassVar[frozenset[str]] = operational
    # Counts only where it is set: lists that were kept before it existed had no earlier ones.
    counted_where_set: ClassVar[frozenset[str]] = frozenset({"keep_earlier"})
    by_task: ClassVar[tuple[str, ...]] = ("min_margin", "max_margin", "max_lists")
    totals: ClassVar[frozenset[str]] = frozenset({"max_lists"})

    strategy: Literal["lists", "m3po"] = Field(
        "lists",
        description="keep whole lists, or one pair per list as M3PO chooses it "
        f"({advice.page('rewards')})",
    )
    min_margin: ByTask[Share] = Field(
        0.8,
        description="smallest kept margin: highest minus lowest reward of a list; in a run of "
        "several tasks best by task, `{grounding: 0.8, ocr: 0.04}`",
    )
    max_margin: ByTask[Share | None] = Field(
        None, description="largest kept margin; none: no limit"
    )
    list_size: Int | None = Field(
        None, ge=2, description="use only the first n samples of each list; none: all"
    )
    drop_unparsed: bool = Field(
        False, description="leave out completions that could not be read, before the margin"
    )
    equal_datasets: bool = Field(
        False, description="keep the same number of lists from each dataset"
    )
    max_lists: ByTask[AtLeastOne | None] = Field(
        3000,
        description="keep at most this many lists, chosen at random; null: all; by task "
        "(`{grounding: 1000, ocr: 1000}`), at most so many of each",
    )
    seed: Int = Field(
        0, ge=0, description="seed of the random choice when there are more than `max_lists`"
    )
    earlier: Path | None = Field(
        None,
        description="preferences of a model with the same tokenizer (data/RUN/preferences/SPLIT, "
        "or one version of it) whose lists are trained on, too; the content counts, not the name. "
        "`perpo iterate` sets it, with rounds.keep_lists",
    )
    keep_earlier: Float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of the lists of `earlier` that are added, of each task those with the "
        "widest margin, beyond `max_lists`; a prompt with a new list gets no earlier one",
    )

    @model_validator(mode="after")
    def _margins_are_ordered(self) -> Self:
        named = (v for v in (self.min_margin, self.max_margin) if isinstance(v, Mapping))
        tasks: list[str | None] = [*dict.fromkeys(task for value in named for task in value)]
        for task in tasks or [None]:
            least, most = (_of(value, task) for value in (self.min_margin, self.max_margin))
            if least is not None and most is not None and most < least:
                of = "" if task is None else f" for {task}"
                raise conflict(
                    f"max_margin {most} is below min_margin {least}{of}: no list fits",
                    "max_margin",
                    "min_margin",
                )
        return self

    @model_validator(mode="after")
    def _earlier_lists_have_a_share(self) -> Self:
        if (self.earlier is None) != (self.keep_earlier is None):
            raise conflict(
                "earlier names lists and keep_earlier the share of them: give both or neither",
                "earlier",
                "keep_earlier",
            )
        return self


def _of(value: Any, task: str | None) -> Any:
    """The value of a task; None where a mapping does not name it."""
    return value.get(task) if isinstance(value, Mapping) else value
