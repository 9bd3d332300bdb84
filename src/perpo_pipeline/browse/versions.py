"""The artifact versions that are shown: those in use, and what they were made from."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from perpo_pipeline import advice
from perpo_pipeline.config.evaluations import AT, Evaluation, read_evaluation
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.status.check import Check
from perpo_pipeline.status.graph import Key, nodes
from perpo_pipeline.store.artifacts import CURRENT, Version, input_of, open_version
from perpo_pipeline.store.list_prompts import prompts_with_lists
from perpo_pipeline.store.made_from import is_of

PREDICTIONS = "predictions"


@dataclass(frozen=True)
class Sampled:
    """What was sampled, and what became of it; None where the run has not got so far.

    `prompts` are those of the samples. `others` are prompts of earlier lists (filter.earlier).
    """

    prompts: Version
    samples: Version
    scores: Version | None
    preferences: Version | None
    reference: Version | None
    others: tuple[Version, ...] = ()


@dataclass(frozen=True)
class TestSet:
    """The prompts of a split and the predictions on them, by evaluation without its split."""

    split: str
    prompts: Version
    predictions: dict[str, Version]


@dataclass(frozen=True)
class Artifacts:
    """All that is shown of a run; `notes` are sentences on what is not, or is out of date."""

    config: RunConfig
    sampled: Sampled | None
    test_sets: tuple[TestSet, ...]
    notes: list[str] = field(default_factory=list)

    def prompts(self) -> dict[str, Version]:
        """Every prompts artifact that is shown, by its fingerprint."""
        sampled = self.sampled
        of_lists = () if sampled is None else (sampled.prompts, *sampled.others)
        every = [*of_lists, *(one.prompts for one in self.test_sets)]
        return {version.fingerprint: version for version in every}

    def ignores_space(self) -> bool:
        """Whether compared texts have all white space equal (score.normalise, eval.normalise)."""
        scores = None if self.sampled is None else self.sampled.scores
        measured = [v for one in self.test_sets for v in one.predictions.values()]
        measured += [] if scores is None else [scores]
        forms = (version.manifest["settings"].get("normalise") or () for version in measured)
        return any("whitespace" in one for one in forms)


def open_artifacts(config: RunConfig) -> Artifacts:
    """Open what the run has; raises `ArtifactError` if it has neither samples nor predictions."""
    notes: list[str] = []
    artifacts = Artifacts(config, _sampled(config, notes), tuple(_test_sets(config, notes)), notes)
    if artifacts.sampled is None and not artifacts.test_sets:
        raise ArtifactError(
            f"the run '{config.run}' has neither samples nor predictions: there is nothing to see",
            where=str(config.run_dir),
            fix=f"run: {_command(config, 'samples')}",
        )
    shown: list[Key] = [
        (node.artifact, node.variant)
        for node in nodes(config)
        if node.artifact in ("preferences", "scores", "samples", PREDICTIONS)
        and _in_use(config, node.artifact, node.variant) is not None
    ]
    reasons = Check(config).find(shown).silent.values()
    notes += [f"not as the configuration says: {one}" for one in reasons if one.kind != "missing"]
    return artifacts


def _sampled(config: RunConfig, notes: list[str]) -> Sampled | None:
    split = config.sample.split
    preferences, scores, samples = (
        _in_use(config, artifact, split) for artifact in ("preferences", "scores", "samples")
    )
    scores = input_of(preferences, "scores") if preferences is not None else scores
    samples = input_of(scores, "samples") if scores is not None else samples
    missing = {"samples": samples, "scores": scores, "preferences": preferences}
    for artifact in [name for name, version in missing.items() if version is None]:
        what = "lists" if artifact == "preferences" else artifact
        notes.append(f"there are no {what} yet; run: {_command(config, artifact)}")
        if samples is None:  # and so nothing else
            return None
    assert samples is not None
    prompts = input_of(samples, "prompts")
    others = () if preferences is None else _others(preferences, prompts)
    reference = None if preferences is None else _reference(config, preferences)
    return Sampled(prompts, samples, scores, preferences, reference, others)


def _others(preferences: Version, prompts: Version) -> tuple[Version, ...]:
    every = (version for version, ids in prompts_with_lists(preferences) if ids)
    return tuple(one for one in every if one.path.resolve() != prompts.path.resolve())


def _reference(config: RunConfig, preferences: Version) -> Version | None:
    """The reference log-probabilities of these lists, if a training has computed them."""
    found = _in_use(config, "reference", preferences.variant)
    return found if found and is_of(found.manifest["inputs"]["preferences"], preferences) else None


def _test_sets(config: RunConfig, notes: list[str]) -> Iterator[TestSet]:
    by_split: dict[str, list[Evaluation]] = {}
    for one in _evaluations(config):
        by_split.setdefault(one.split, []).append(one)
    for split, evaluations in by_split.items():
        prompts, predictions = None, {}
        for one in evaluations:
            version = open_version(config.run_dir / PREDICTIONS / one.name, PREDICTIONS)
            own = input_of(version, "prompts")
            prompts = prompts or own
            if own.fingerprint == prompts.fingerprint:
                predictions[one.shown] = version
            else:
                notes.append(
                    f"{PREDICTIONS}/{one.name} is not shown: its prompts are others "
                    f"({own.fingerprint}) than those of {next(iter(predictions))} "
                    f"({prompts.fingerprint}); run: {advice.command('eval')}"
                )
        if prompts is not None:
            yield TestSet(split, prompts, predictions)


def _evaluations(config: RunConfig) -> list[Evaluation]:
    """Those of the configuration that were made, then others that the run's folder has."""
    named = [one for one in config.evaluations() if _in_use(config, PREDICTIONS, one.name)]
    known = {one.name for one in named}
    folders = sorted(p.parent.name for p in config.run_dir.glob(f"{PREDICTIONS}/*/{CURRENT}"))
    return named + [read_evaluation(n) for n in folders if AT in n and n not in known]


def _in_use(config: RunConfig, artifact: str, variant: str) -> Version | None:
    place = config.run_dir / artifact / variant
    return open_version(place, artifact) if (place / CURRENT).is_file() else None


def _command(config: RunConfig, artifact: str) -> str:
    """The command that makes an artifact of the sampled split."""
    node = next(node for node in nodes(config) if node.artifact == artifact)
    return advice.command(*node.words)
