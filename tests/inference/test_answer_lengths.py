"""What the lengths of a text-only server's answers say about `max_new_tokens`; the limit is 40."""

import pytest

from perpo_pipeline.inference.answer_lengths import length_fault
from perpo_pipeline.vlm.completion import Completion


def drawn(*lengths: int, stop: bool = False) -> list[Completion]:
    reason = "stop" if stop else "length"
    return [Completion("", (5,) * length, reason, None) for length in lengths]


@pytest.mark.parametrize(
    ("completions", "counted"),
    [
        (drawn(40), 40),
        (drawn(40), None),
        (drawn(39), 40),  # half a character of the last token is not in the text
        (drawn(10), 40),  # 40 line breaks, which are spelled in 10 tokens
        (drawn(40), 33),  # it counts with another model's tokenizer
        (drawn(38), 37),  # both are estimates
        (drawn(20), None),  # nobody knows
        (drawn(10, 40), 40),  # one of two was counted; the other has line breaks
        (drawn(3), 43),  # its thoughts are counted: what is missing is another check's affair
        (drawn(3, stop=True), 2),
        (drawn(41, stop=True), 40),  # the end token need not be counted
        (drawn(70, stop=True), None),
        (drawn(3, 40), 80),
        (drawn(3) + drawn(21, 21, stop=True), 80),
        (drawn(30, 40), 70),  # one of them may be a guess
    ],
)
def test_lengths_that_may_be_those_of_the_limit(
    completions: list[Completion], counted: int | None
) -> None:
    assert length_fault(completions, counted, 40) is None


@pytest.mark.parametrize(
    ("completions", "counted", "fault"),
    [
        (drawn(3), None, "ended an answer after 3 tokens, and max_new_tokens is 40"),
        (drawn(3), 4, "ended an answer after 4 tokens, and max_new_tokens is 40"),
        (drawn(30), 33, "ended an answer after 33 tokens"),
        (drawn(3, 40), None, "ended an answer after 3 tokens"),
        (drawn(3, 40), 43, "ended an answer after 3 tokens"),
        (drawn(3) + drawn(21, 21, stop=True), 43, "ended an answer after 3 tokens"),
        (drawn(90, stop=True), 90, "sent 90 tokens, and max_new_tokens is 40"),
    ],
)
def test_lengths_that_cannot_be(
    completions: list[Completion], counted: int | None, fault: str
) -> None:
    assert fault in str(length_fault(completions, counted, 40))
