"""The artifact versions that the page is made from."""

from dataclasses import dataclass

from perpo_pipeline.config.evaluations import Evaluation
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.run import Run
from perpo_pipeline.store.artifacts import Version, input_of


@dataclass(frozen=True)
class Inputs:
    """The versions by name: metrics per evaluation, predictions per model, adapters per variant.

    `split` is the main test split; `predictions` and `prompts` are those of it.
    """

    split: str

    metrics: dict[str, Version]
    predictions: dict[str, Version]
    adapters: dict[str, Version]
    scores: Version
    preferences: Version
    prompts: Version
    sampled_prompts: Version

    def by_name(self) -> dict[str, Version]:
        """All versions, under the names that the report's manifest gives its inputs."""
        groups = {
            "metrics": self.metrics,
            "predictions": self.predictions,
            "adapter": self.adapters,
        }
        named = {f"{kind}/{v}": x for kind, group in groups.items() for v, x in group.items()}
        return {
            **named,
            "scores": self.scores,
            "preferences": self.preferences,
            "prompts": self.prompts,
            "sampled_prompts": self.sampled_prompts,
        }


def open_inputs(run: Run) -> Inputs:
    """Open the versions in use; raises `ArtifactError` naming the first that does not exist."""
    config = run.config
    split, models = config.eval.splits[0], config.eval_models()
    metrics = {name: run.latest("metrics", name) for name in config.eval_variants()}
    predictions = {
        model: input_of(metrics[Evaluation(model, split).name], "predictions") for model in models
    }
    prompts = {model: input_of(version, "prompts") for model, version in predictions.items()}
    if len({version.fingerprint for version in prompts.values()}) > 1:
        raise ArtifactError(
            "the models were evaluated on different prompts: "
            + ", ".join(f"{model} on {p.fingerprint}" for model, p in prompts.items()),
            where=str(config.run_dir),
            fix="rerun `perpo eval`",
        )
    scores = run.latest("scores", config.sample.split)
    return Inputs(
        split=split,
        metrics=metrics,
        predictions=predictions,
        adapters={name: run.latest("adapter", name) for name in config.train.variants()},
        scores=scores,
        preferences=run.latest("preferences", config.sample.split),
        prompts=prompts[models[0]],
        sampled_prompts=input_of(scores, "prompts"),
    )
