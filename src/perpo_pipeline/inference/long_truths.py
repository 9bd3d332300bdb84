"""True texts that an answer cannot hold: edit distance then measures the cut, too.

They are counted before the first answer, printed, and recorded in the manifest's counts under
TRUTHS_TOO_LONG.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from perpo_pipeline.errors import InputError
from perpo_pipeline.inference.backend import BackendSetup
from perpo_pipeline.run import Run
from perpo_pipeline.store.places import name_prompt
from perpo_pipeline.store.schemas import PROMPTS
from perpo_pipeline.vlm.image_place import row_turns
from perpo_pipeline.vlm.inputs import IDENTITY_CACHE

if TYPE_CHECKING:
    from perpo_pipeline.vlm.models import Vlm

TRUTHS_TOO_LONG = "truths_too_long"
COLUMNS = PROMPTS.pick("prompt_id", "place", "task", "gt_text", role="asked")


@dataclass(frozen=True)
class LongTruths:
    """How many of `texts` true texts have more tokens than `limit`; the longest, with its place."""

    texts: int
    count: int
    limit: int
    longest: int = 0
    place: str = ""

    def sentence(self, setting: str) -> str:
        """What follows from it, and the setting that helps; the end takes a token, too."""
        are = "is" if self.count == 1 else "are"
        return (
            f"warning: {self.count:,} of {self.texts:,} true texts {are} longer than {setting} "
            f"({self.limit:,}): such an answer is cut, and edit distance measures the cut, too; "
            f"the longest has {self.longest:,} tokens ({self.place}): set {setting}: "
            f"{self.longest + 1}"
        )


def find_long_truths(vlm: "Vlm", rows: Iterable[Mapping[str, Any]], limit: int) -> LongTruths:
    """Count the rows whose `gt_text` has more than `limit` tokens as an answer of this model."""
    from perpo_pipeline.vlm.prompts import answer_ids

    texts = count = longest = 0
    place = ""
    for row in rows:
        texts += 1
        if _surely_fits(row, limit):
            continue
        try:
            tokens = len(answer_ids(vlm, row_turns(row), row["gt_text"]))
        except InputError:
            continue  # the prompt cannot be asked either, which the stage reports
        count += tokens > limit
        if tokens > max(longest, limit):
            longest, place = tokens, name_prompt(row)
    return LongTruths(texts, count, limit, longest, place)


def warn_of_long_truths(
    run: Run, title: str, setup: BackendSetup, prompts: pa.Table, section: str
) -> dict[str, int]:
    """Print how many true texts `max_new_tokens` of a section cuts; returns the manifest's count.

    `prompts` has `COLUMNS`. Empty without true texts.
    """
    rows = [r for r in prompts.select(COLUMNS).to_pylist() if r["gt_text"] is not None]
    if not rows:
        return {}
    if all(_surely_fits(row, setup.longest(row)) for row in rows):
        return {TRUTHS_TOO_LONG: 0}
    from perpo_pipeline.vlm.loading import load_without_weights

    cache = setup.scratch / IDENTITY_CACHE
    vlm = load_without_weights(setup.resolved, identity_cache=cache)
    count = 0
    differs = isinstance(setup.settings.max_new_tokens, Mapping)
    for task in dict.fromkeys(row["task"] if differs else None for row in rows):
        own = [row for row in rows if task in (None, row["task"])]
        found = find_long_truths(vlm, own, setup.settings.longest(task))
        count += found.count
        if found.count:
            key = f"{section}.max_new_tokens" + (f".{task}" if task else "")
            run.say(f"{title}: {found.sentence(key)}")
    return {TRUTHS_TOO_LONG: count}


def _surely_fits(row: Mapping[str, Any], limit: int) -> bool:
    """Whether no tokenizer makes more tokens of the text: none writes less than a byte."""
    return len(row["gt_text"].encode()) < limit
