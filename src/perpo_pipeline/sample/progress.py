"""The progress bar of `perpo sample`."""

import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.rewards.scoring import TRUTH_COLUMNS, score_samples
from perpo_pipeline.run import Run
from perpo_pipeline.sample.parts import Row, count_tokens
from perpo_pipeline.store.schemas import SAMPLES


class SampleProgress:
    """A bar with prompts and tokens a second, time left, and a preview of the rewards."""

    def __init__(self, run: Run, split: str, num_prompts: int, *, done: int) -> None:
        self.run, self.split, self.num_prompts, self.done = run, split, num_prompts, done
        self.bar: Any = None
        self.prompts = self.tokens = self.scored = self.parsed = 0
        self.reward = 0.0

    def begin(self) -> None:
        """The model is there; the clock starts."""
        count = self.run.config.sample.num_samples
        self.bar = self.run.bar(
            f"sample {self.split} ({count} a prompt)",
            total=self.num_prompts,
            initial=self.done,
            unit="prompt",
        )
        self.started = time.monotonic()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def tell(self, prompts: Sequence[Row], rows: Sequence[Row]) -> None:
        """Some prompts are done."""
        self.preview(prompts, rows)
        self.show(self.prompts + len(prompts), self.tokens + count_tokens(rows))

    def show(self, prompts: int, tokens: int) -> None:
        """So much is done since the beginning."""
        new, self.prompts, self.tokens = prompts - self.prompts, prompts, tokens
        shown = {"tokens/s": f"{tokens / max(time.monotonic() - self.started, 1e-9):.0f}"}
        if self.scored:
            shown["parsed"] = f"{self.parsed / self.scored:.0%}"
            shown["reward"] = f"{self.reward / self.scored:.3f}"
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(new)

    def preview(self, prompts: Sequence[Row], rows: Sequence[Row]) -> None:
        """Score rows for the bar, where that is asked for."""
        samples = [row for row in rows if "reason" not in row]
        reward = self.run.config.sample.preview_reward
        if reward is not None and samples:
            self._preview(reward, prompts, samples)

    def _preview(self, reward: str, prompts: Sequence[Row], samples: Sequence[Row]) -> None:
        truth = {"iou": "gt_box", "edit_similarity": "gt_text"}[reward]
        known = {row["prompt_id"]: row for row in prompts if row[truth] is not None}
        some = [row for row in samples if row["prompt_id"] in known]
        if not some:
            return
        scores = score_samples(
            pa.Table.from_pylist(some, schema=SAMPLES.columns),
            pa.table({name: [row[name] for row in known.values()] for name in TRUTH_COLUMNS}),
            reward=reward,
            **_box_settings(self.run.config),
        )
        self.scored += len(some)
        self.parsed += sum(scores["parse_ok"].to_pylist())
        self.reward += sum(scores["reward"].to_pylist())


def _box_settings(config: RunConfig) -> dict[str, str]:
    return {"box_format": config.model.box_format, "box_frame": config.model.box_frame}
