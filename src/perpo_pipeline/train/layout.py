"""Where the lists of a packed batch stand, known on the processor without asking the device."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PackedList:
    """Where a packed list stands, on the processor: `start` is its first place of the R*T places.

    `inside` has the packed tokens of each completion: all but the last.
    """

    start: int
    prefix_tokens: int
    inside: tuple[int, ...]

    @property
    def answers(self) -> int:
        """The place after the prefix, where the first completion begins."""
        return self.start + self.prefix_tokens
