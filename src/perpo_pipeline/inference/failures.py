"""Prompts that get no answer: counted during the stage, reported after it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from perpo_pipeline import advice
from perpo_pipeline.errors import InputError
from perpo_pipeline.inference.part_sampler import Row
from perpo_pipeline.run import Run
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.places import name_prompt

FEWEST_IN_A_ROW = 4  # prompts that fail one after the other before the server is suspected


@dataclass
class Failures:
    """Counts the prompts that failed.

    `allowed` is max_errors, `where` the version's directory, `done` what should have been done with
    the prompts, such as "sampled".
    """

    allowed: int
    where: str
    done: str
    count: int = 0
    first: Row | None = None
    in_a_row: list[Row] = field(default_factory=list)

    @property
    def too_many(self) -> bool:
        return self.count > self.allowed

    def add(self, errors: Sequence[Row]) -> None:
        """Count the ERRORS rows of a part."""
        self.count += len(errors)
        self.first = self.first or next(iter(errors), None)
        self.in_a_row.clear()

    def watch(self, rows: Sequence[Row], at_once: int) -> None:
        """Look at the rows of one prompt of the part under way; `at_once` are asked side by side.

        Raises InputError if more fail in a row than allowed, and as many as are asked side by side,
        at least `FEWEST_IN_A_ROW`: a server with a fault answers none of the others either. A bad
        prompt among good ones does not end its part.
        """
        if not any("reason" in row for row in rows):
            self.in_a_row.clear()
            return
        self.in_a_row += rows
        number = len(self.in_a_row)
        if number < max(at_once, FEWEST_IN_A_ROW) or self.count + number <= self.allowed:
            return
        last = self.in_a_row[-1]
        raise InputError(
            f"{number} prompts in a row cannot be {self.done} (max_errors {self.allowed}), the "
            f"last of them {name_prompt(last)}: {last['reason']}",
            where=self.where,
            fix="if the server has a fault, mend it; if the prompts have, repair them or raise "
            "max_errors. The same command asks them again and goes on from what is kept",
        )

    def check(self) -> None:
        """Raise InputError if more prompts failed than allowed."""
        if not self.too_many or self.first is None:
            return
        raise InputError(
            f"{self.count} prompts cannot be {self.done} (max_errors {self.allowed}), "
            f"for example {name_prompt(self.first)}: {self.first['reason']}",
            where=self.where,
            fix="repair what the reason names and run the same command, which retries them and "
            f"resumes (if the data changes, first run: {advice.command('prepare')}); or raise "
            "max_errors",
        )


def report_failures(run: Run, version: Version, allowed: int, outcome: str) -> None:
    """Print how many prompts of a finished version failed, and why the first did.

    `outcome` says what became of them, such as "could not be sampled". Raises InputError if they
    are more than `allowed`: the version was made with a larger max_errors.
    """
    failed, prompts = version.manifest["counts"]["failed"], version.manifest["counts"]["prompts"]
    if not failed:
        return
    first = version.table("errors").to_pylist()[0]
    message = (
        f"{failed} of {prompts} prompts {outcome}, for example {name_prompt(first)}: "
        f"{first['reason']}"
    )
    if failed > allowed:
        raise InputError(
            f"{message} (max_errors {allowed})",
            where=str(version.path),
            fix="remove this directory to ask for all of them again, or raise max_errors",
        )
    stage = version.manifest["stage"]
    run.say(f"{stage} {version.variant}: {message} (all: {version.path}/errors-*.parquet)")
