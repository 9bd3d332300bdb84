"""The training methods: everything that distinguishes one from another, in one record each.

The configuration, training and the report read `METHODS` whenever they need a method, so a method
that is added to the dict works everywhere.
"""

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal


@dataclass(frozen=True)
class Method:
    """One training method.

    `name` as written under `train.methods`; `label` and `colour` as shown in the report.

    `trains_on` says which examples it needs: `truth` (the ground truth of each prompt, without a
    reference model), `pair` (the best and the worst completion of each list) or `lists` (whole
    lists).

    `loss` is the dotted path of a function on tensors `(B, N)`, N completions for each of B
    prompts, which returns one loss per prompt, `(B,)`:

    - for `pair` and `lists`: `loss(policy_logps, ref_logps, rewards, *, counts, mask, ...)`, with
      each of `settings` as a further keyword (see `train/losses.py`). If it has the keyword, it
      also gets `ties` `(B,)` (scores within it differ by rounding alone) or `num_tokens` `(B, N)`.
      With `blank_image`, which needs `pair`, the best completion is also read behind a blank image:
      `negative_logps` and `negative_ref_logps` `(B, N)`. A step's loss is the mean over its lists;
    - for `truth`: `loss(target_logps, ...)`, with each of `settings` as a keyword, summed over the
      target's tokens; a step's loss is the mean over its target tokens.

    `loss_size` says of a loss on lists whether it is a mean over pairs, the log-likelihood of a
    whole order, or that of one choice: the report draws losses of one size on the same axes.
    """

    name: str
    label: str
    colour: str
    trains_on: Literal["truth", "pair", "lists"]
    loss: str
    settings: frozenset[str] = field(default_factory=frozenset)
    loss_size: Literal["pair", "order", "choice"] = "pair"
    blank_image: bool = False

    def __post_init__(self) -> None:
        if self.blank_image and self.trains_on != "pair":
            raise ValueError(f"{self.name}: blank_image needs pairs, whose first is the best")

    @property
    def needs_preferences(self) -> bool:
        """Whether it compares completions, and so needs the reference log-probabilities."""
        return self.trains_on != "truth"

    def uses(self, setting: str) -> bool:
        """Whether a training setting changes this method's result.

        `sft_weight` serves every method with preferences: the trainer adds the anchor. So does the
        model of the reference. Settings that no loss takes, such as the learning rate, serve every
        method.
        """
        if setting in ("sft_weight", "reference_model", "reference_revision"):
            return self.needs_preferences
        is_for_losses = any(setting in method.settings for method in METHODS.values())
        return setting in self.settings or not is_for_losses

    def load_loss(self) -> Any:
        """Import the loss function."""
        module, _, name = self.loss.partition(":")
        return getattr(import_module(module), name)


_LOSSES = "perpo_pipeline.train.losses"
_LISTWISE = "perpo_pipeline.train.listwise_losses"
_PAIRWISE = frozenset({"beta", "label_smoothing"})
_BETA = frozenset({"beta"})
_ALL = (
    Method("sft", "SFT", "#7b57b8", "truth", f"{_LOSSES}:sft_nll"),
    Method("dpo", "DPO", "#0b857c", "pair", f"{_LOSSES}:dpo_loss", _PAIRWISE),
    Method("lipo", "LiPO", "#8a7400", "lists", f"{_LOSSES}:lipo_loss", _PAIRWISE),
    Method("lipo-lambda", "LiPO-λ", "#b03a75", "lists", f"{_LOSSES}:lipo_lambda_loss", _PAIRWISE),
    Method("mdpo", "mDPO", "#9b2f2f", "pair", f"{_LOSSES}:mdpo_loss", _BETA, blank_image=True),
    Method("pro", "PRO", "#2f7d32", "lists", f"{_LISTWISE}:pro_loss", loss_size="order"),
    Method(
        "list-mle",
        "ListMLE",
        "#7a5230",
        "lists",
        f"{_LISTWISE}:list_mle_loss",
        _BETA,
        loss_size="order",
    ),
    Method(
        "infonca",
        "InfoNCA",
        "#50647a",
        "lists",
        f"{_LISTWISE}:infonca_loss",
        _BETA | {"reward_temperature"},
        loss_size="choice",
    ),
    Method("perpo", "PerPO", "#1d5fd1", "lists", f"{_LOSSES}:perpo_loss", _PAIRWISE | {"gamma"}),
)
METHODS: dict[str, Method] = {method.name: method for method in _ALL}
"""By name, in the order of the report: that of the paper's Table 1, and PerPO last."""
