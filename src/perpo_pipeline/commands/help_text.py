"""How help is printed: commands by what they are for, and examples that can be pasted."""

import inspect
import textwrap
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

# The commands in the order of the help.
GROUPS = {
    "Stages, in their order": ("prepare", "sample", "score", "filter", "train", "eval", "report"),
    "The whole run": ("init", "run", "plan", "sweep", "iterate", "status", "path", "gc"),
    "Models and results": (
        *("browse", "ask", "inspect", "compare", "measure", "judge", "merge", "export"),
    ),
    "This program": ("settings", "doctor"),
}
EXAMPLE = "Example: "


class PastableExamples(TyperCommand):
    """A command whose examples are not broken in the middle of an option."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        self.help = _with_pastable_examples(self.help or "", formatter.width - 2)
        super().format_help_text(ctx, formatter)


class GroupedCommands(TyperGroup):
    """Commands under the titles of `GROUPS`; those that have no place there as `Commands`."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        self.help = _with_pastable_examples(self.help or "", formatter.width - 2)
        super().format_help_text(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        shown = [name for name, command in self.commands.items() if not command.hidden]
        listed = [name for names in GROUPS.values() for name in names]
        others = tuple(name for name in shown if name not in listed)
        column = max(map(len, shown))
        for title, names in {**GROUPS, "Commands": others}.items():
            here = [name for name in names if name in shown]
            rows = [(f"{name:{column}}", self._summary(name, formatter.width)) for name in here]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def _summary(self, name: str, width: int) -> str:
        longest = max(map(len, self.commands))
        return str(self.commands[name].get_short_help_str(width - 6 - longest))


def use(app: typer.Typer) -> None:
    """Print the help of all commands of an app, and of its groups, in this way."""
    for command in app.registered_commands:
        command.cls = PastableExamples
    for group in app.registered_groups:
        group.cls = GroupedCommands
        if group.typer_instance is not None:
            use(group.typer_instance)


def _with_pastable_examples(text: str, width: int) -> str:
    """The text, its examples in lines that a shell joins and the help does not wrap."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        f"\b\n{_pastable(' '.join(one.split()), width)}" if one.startswith(EXAMPLE) else one
        for one in paragraphs
    )


def _pastable(example: str, width: int) -> str:
    lines = textwrap.wrap(
        example.replace(" --", "\0--").replace(" ", "\1").replace("\0", " "),
        width - 2,
        subsequent_indent="\1" * (len(EXAMPLE) + 2),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return " \\\n".join(lines).replace("\1", " ")
