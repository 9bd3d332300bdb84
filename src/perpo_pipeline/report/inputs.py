"""The artifact versions that the page is made from.

Metrics are those in use; everything else follows from their lineage: the adapter of a prediction is
the one that made it, the lists are those that this adapter was trained on, the samples those that
the lists were made of. So no figure on the page can be about a version that is not behind it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from perpo_pipeline import advice
from perpo_pipeline.config.evaluations import AT, BASE, Evaluation
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.report.methods import main_method, reported_methods
from perpo_pipeline.run import Run
from perpo_pipeline.status.graph import nodes
from perpo_pipeline.store.artifacts import CURRENT, Version, input_of, open_version
from perpo_pipeline.store.made_from import is_of


@dataclass(frozen=True)
class SplitInputs:
    """The prompts of one split, and each model's predictions on them."""

    split: str
    is_out_of_domain: bool
    prompts: Version
    predictions: dict[str, Version]


@dataclass(frozen=True)
class Inputs:
    """The versions by name: metrics per evaluation, adapters per evaluated variant.

    The first of `test_sets` is the main one. `lists` are the preferences that each adapter was
    trained on; `preferences` are those of the headline's method, and the scores and prompts
    theirs. `benchmarks` are the metrics of other harnesses.
    """

    metrics: dict[str, Version]
    test_sets: tuple[SplitInputs, ...]
    adapters: dict[str, Version]
    lists: dict[str, Version]
    preferences: Version
    scores: Version
    sampled_prompts: Version
    benchmarks: dict[str, Version]

    @property
    def main(self) -> SplitInputs:
        """The test set of the headline, the pictures and the evaluations with wrong images."""
        return self.test_sets[0]

    def by_name(self) -> dict[str, Version]:
        """All versions, under the names that the report's manifest gives its inputs."""
        predictions = {
            Evaluation(model, one.split).name: version
            for one in self.test_sets
            for model, version in one.predictions.items()
        }
        groups = {
            "metrics": self.metrics,
            "predictions": predictions,
            "prompts": {one.split: one.prompts for one in self.test_sets},
            "adapter": self.adapters,
            "preferences": self.lists,
            "benchmarks": self.benchmarks,
        }
        named = {f"{kind}/{v}": x for kind, group in groups.items() for v, x in group.items()}
        return {
            **named,
            "scores": self.scores,
            "preferences": self.preferences,
            "sampled_prompts": self.sampled_prompts,
        }


def open_inputs(run: Run) -> Inputs:
    """Open the versions in use; raises `ArtifactError` naming the first that does not exist."""
    config = run.config
    run.all_latest(nodes(config)[-1].needs)  # one error for all of them
    metrics = {name: run.latest("metrics", name) for name in config.eval_variants()}
    test_sets = tuple(_test_set(run, split, metrics) for split in config.eval.splits)
    adapters = _adapters(test_sets[0])
    lists = {name: input_of(adapter, "preferences") for name, adapter in adapters.items()}
    main = main_method(reported_methods(config))
    if main is None:
        preferences = run.latest("preferences", config.sample.split)
    else:
        preferences = lists[main.variants[0]]
    scores = input_of(preferences, "scores")
    return Inputs(
        metrics=metrics,
        test_sets=test_sets,
        adapters=adapters,
        lists=lists,
        preferences=preferences,
        scores=scores,
        sampled_prompts=input_of(scores, "prompts"),
        benchmarks=_find_benchmarks(run, adapters),
    )


def _adapters(test_set: SplitInputs) -> dict[str, Version]:
    """The adapters that made the predictions of the trained models on the main test set."""
    trained = {model: v for model, v in test_set.predictions.items() if model != BASE}
    return {model: input_of(version, "adapter") for model, version in trained.items()}


def _find_benchmarks(run: Run, adapters: Mapping[str, Version]) -> dict[str, Version]:
    """The metrics of harnesses in the run by name; those of an older adapter are named, and out."""
    found: dict[str, Version] = {}
    for model in run.config.eval_models():
        folder = run.config.run_dir / "harness"
        for pointer in sorted(folder.glob(f"{model}{AT}*/{CURRENT}")):
            name = pointer.parent.name
            place = run.place("metrics", name)
            if not (place / CURRENT).is_file():
                continue
            metrics = open_version(place, "metrics")
            measured = input_of(metrics, "harness").manifest["inputs"].get("adapter")
            if model != BASE and (measured is None or not is_of(measured, adapters[model])):
                run.say(f"report: {name} is about an older adapter and is left out; measure again")
                continue
            found[name] = metrics
    return found


def _test_set(run: Run, split: str, metrics: dict[str, Version]) -> SplitInputs:
    """Raises `ArtifactError` if the models were evaluated on different prompts."""
    predictions = {
        model: input_of(metrics[Evaluation(model, split).name], "predictions")
        for model in run.config.eval_models()
    }
    prompts = {model: input_of(version, "prompts") for model, version in predictions.items()}
    if len({version.fingerprint for version in prompts.values()}) > 1:
        raise ArtifactError(
            f"the models were evaluated on different prompts of the split '{split}': "
            + ", ".join(f"{model} on {p.fingerprint}" for model, p in prompts.items()),
            where=str(run.config.run_dir),
            fix=f"run: {advice.command('eval')}",
        )
    is_out_of_domain = split in run.config.eval.out_of_domain
    return SplitInputs(split, is_out_of_domain, next(iter(prompts.values())), predictions)
