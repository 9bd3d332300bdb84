"""The running parse rate and mean reward of `sample.preview_reward`."""

from collections.abc import Sequence

import pyarrow as pa

from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.inference.part_sampler import Row
from perpo_pipeline.rewards.scoring import TRUTH_COLUMNS, score_samples
from perpo_pipeline.store.schemas import SAMPLES

TRUTH_OF_REWARD = {"iou": "gt_box", "edit_similarity": "gt_text"}


class RewardPreview:
    """Scores completions as they arrive; does nothing unless `preview_reward` is set."""

    def __init__(self, config: RunConfig) -> None:
        self.reward = config.sample.preview_reward
        self.reading, self.normalise = config.model.reading(), config.score.normalise
        self.scored = self.parsed = 0
        self.total = 0.0

    def add(self, prompts: Sequence[Row], rows: Sequence[Row]) -> None:
        """Score the SAMPLES rows of those prompts that have a truth for this reward."""
        if self.reward is None:
            return
        truth = TRUTH_OF_REWARD[self.reward]
        known = {row["prompt_id"]: row for row in prompts if row[truth] is not None}
        samples = [row for row in rows if "reason" not in row and row["prompt_id"] in known]
        if not samples:
            return
        scores = score_samples(
            pa.Table.from_pylist(samples, schema=SAMPLES.columns),
            pa.table({name: [row[name] for row in known.values()] for name in TRUTH_COLUMNS}),
            reward=self.reward,
            reading=self.reading,
            normalise=self.normalise,
        )
        self.scored += len(samples)
        self.parsed += sum(scores["parse_ok"].to_pylist())
        self.total += sum(scores["reward"].to_pylist())

    def figures(self) -> dict[str, str]:
        """Parse rate and mean reward as the progress bar shows them; empty before the first."""
        if not self.scored:
            return {}
        return {
            "parsed": f"{self.parsed / self.scored:.0%}",
            "reward": f"{self.total / self.scored:.3f}",
        }
