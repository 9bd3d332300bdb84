"""What must hold before rounds are made: the settings, and that no round sees what is measured."""

from collections.abc import Mapping
from pathlib import Path

from perpo_pipeline import advice
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.config.sources import PerpoJsonSource
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.evaluate.apart import refuse_meeting, rows_to_compare
from perpo_pipeline.rounds.round_files import Part
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.suggestions import did_you_mean


def method_of(config: RunConfig) -> str:
    """The training of every round; raises `ConfigError` with every fault of the settings."""
    rounds, names = config.rounds, list(config.train.variants())
    method = rounds.method or names[0]
    faults = []
    if method not in names:
        faults.append(
            f"rounds.method: there is no training '{method}'{did_you_mean(method, names)} "
            f"(the run has {', '.join(names)})"
        )
    elif rounds.method is None and len(names) > 1:
        faults.append(f"rounds.method: name one of the trainings {', '.join(names)}")
    elif rounds.reference and config.train.variants()[method].reference_model is not None:
        faults.append(
            f"rounds.reference: the training '{method}' has a reference model of its own "
            "(train.reference_model); keep one of the two"
        )
    faults += _faults_of_stages(config)
    if faults:
        raise ConfigError(
            "these settings do not fit together:\n" + "\n".join(f"  - {one}" for one in faults),
            fix="correct them in the section `rounds` of the run's file, or with --set",
        )
    return method


def _faults_of_stages(config: RunConfig) -> list[str]:
    rounds, sampled, prepared = config.rounds, config.sample.split, list(config.prepare)
    named = {"select_on": rounds.select_on, "report_on": rounds.report_on}
    faults = [
        f"rounds.{key}: '{split}' is not a split of `prepare` {prepared}"
        for key, split in named.items()
        if split is not None and split not in prepared
    ]
    faults += [
        f"rounds.{key}: the rounds are trained on the prompts of '{split}' (sample.split)"
        for key, split in named.items()
        if split == sampled
    ]
    if rounds.select_on == rounds.report_on:
        faults.append(
            f"rounds.report_on: '{rounds.report_on}' is select_on, too, on which a round is chosen"
        )
    faults += [
        f"{name}.backend: a server answers with its own model, and each round has another one"
        for name, section in (("sample", config.sample), ("eval", config.eval))
        if section.backend == "openai"
    ]
    if config.model.quantization is not None and rounds.num > 1:
        faults.append(
            f"model.quantization: {config.model.quantization} would quantise each merged model "
            "anew, so a round would begin with another model than the one that it is compared "
            "with; remove it, so that all rounds train beside full weights, or set rounds.num to 1 "
            f"({advice.page('small-cards')})"
        )
    if isinstance(config.prepare[sampled], PerpoJsonSource):
        faults.append(
            f"prepare.{sampled}: released lists have the answers of another model; rounds need "
            "prompts to sample"
        )
    return faults


def parts_of(config: RunConfig, total: int, where: Path | None = None) -> list[Part]:
    """The prompts of each round, of `total`; raises `ConfigError` if there are too few for all.

    `where` is their folder, if they are prepared.
    """
    rounds = config.rounds
    if rounds.prompts == "same":
        return [Part(0, None)] * rounds.num
    num = rounds.num_prompts or total // rounds.num
    if num * rounds.num > total or num == 0:
        each = f"{num:,} prompts each" if num else "at least one prompt each"
        raise ConfigError(
            f"{rounds.num} rounds with {each} need {max(num, 1) * rounds.num:,}, and "
            f"'{config.sample.split}' has {total:,}",
            where=None if where is None else str(where),
            fix="prepare more prompts, lower rounds.num or rounds.num_prompts, or set "
            "rounds.prompts to same",
        )
    return [Part(num * index, num) for index in range(rounds.num)]


def check_apart(config: RunConfig, prompts: Mapping[str, Version]) -> None:
    """Raise `InputError` where prompts meet that must be apart (evaluate/apart.py).

    These are the rounds' own and those that are measured: `perpo eval` refuses an adapter on images
    that it was trained on, and cannot see those of earlier rounds. They are also those on which a
    round is chosen, and those on which it is reported.
    """
    trained_on, rounds = config.sample.split, config.rounds
    rows = {split: rows_to_compare(found) for split, found in prompts.items()}
    measured = [split for split in (rounds.select_on, rounds.report_on) if split is not None]
    pairs = {(trained_on, split): "that the rounds are trained on" for split in measured}
    if rounds.report_on is not None:
        of = f"of '{rounds.select_on}', on which a round is chosen"
        pairs[rounds.select_on, rounds.report_on] = of
    for (one, other), use in pairs.items():
        allowed = config.eval.allow_train_images
        refuse_meeting(rows[one], rows[other], (one, other), use, allowed=allowed)
