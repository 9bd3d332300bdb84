"""Options that were removed, and what replaces each."""

import shlex
from collections.abc import Sequence

from perpo_pipeline.errors import ConfigError

MEASURE = "perpo measure boxes FILE, perpo measure pages FILE or perpo measure answers FILE"
POPE = "perpo measure pope --answers A.jsonl --questions Q.jsonl --labels L.json --out DIR"

# Command -> option -> replacement; {value} is the value that the user gave.
REMOVED: dict[str, dict[str, str]] = {
    "prepare": {
        "--variant": "--split {value}",
        "--datasets": "--set prepare.SPLIT.datasets=[{value}]",
        "--splits": "--set prepare.SPLIT.splits=[{value}]",
        "--split-by": "--set prepare.SPLIT.split_by={{DATASET: NAME}}",
        "--keep-evaluated": "--set prepare.SPLIT.leave_out_evaluated=false",
        "--num-prompts": "--set prepare.SPLIT.num_prompts={value}",
    },
    "sample": {
        "--served-model": "--set sample.served_model={value}",
        "--num-gpus": "--set sample.num_gpus={value}",
        "--engine": "--set sample.engine={value}",
        "--num-actors": "--set sample.num_actors={value}",
        "--ray-address": "--set sample.ray_address={value}",
        "--preview-reward": "--set sample.preview_reward={value}",
        "--max-errors": "--set sample.max_errors={value}",
    },
    "filter": {
        "--max-margin": "--set filter.max_margin={value}",
        "--list-size": "--set filter.list_size={value}",
        "--drop-unparsed": "--set filter.drop_unparsed=true",
        "--equal-datasets": "--set filter.equal_datasets=true",
        "--strategy": "--set filter.strategy={value}",
    },
    "train": {
        "--variant": "--method {value}",
        "--beta": "--set train.methods.METHOD.beta={value}",
        "--gamma": "--set train.methods.METHOD.gamma={value}",
        "--learning-rate": "--set train.methods.METHOD.learning_rate={value}",
        "--forward": "--set train.forward={value}",
        "--max-tokens-per-step": "--set train.max_tokens_per_forward={value}",
        "--drop-too-long": "--set train.drop_too_long=true",
        "--log-to": "--set train.log_to=[{value}]",
    },
    "eval": {
        "--variant": "--evaluation {value}",
        "--predictions": MEASURE,
        "--task": f"{MEASURE}; for POPE: {POPE}",
        "--box-format": "perpo measure boxes FILE --box-format {value} --frame FRAME --out DIR",
        "--frame": "perpo measure boxes FILE --box-format FORMAT --frame {value} --out DIR",
        "--fox-compat": "perpo measure pages FILE --fox-compat --out DIR",
        "--answers": POPE,
        "--questions": POPE,
        "--labels": POPE,
        "--best-of-n": "perpo measure best-of-n",
        "--scores": "perpo measure best-of-n --scores {value}",
    },
}


# Options of one command that others do not have -> what means it there.
ELSEWHERE: dict[str, dict[str, str]] = {
    "sample": {"--split": "--set sample.split={value}"},
    "score": {"--split": "--set sample.split={value}"},
    "filter": {"--split": "--set sample.split={value}"},
    "train": {"--split": "--set sample.split={value}"},
    "eval": {
        "--split": "--set eval.splits=[{value}], or --evaluation base@{value} for one model",
        "--method": "--evaluation {value}",
    },
}


def check_removed(arguments: Sequence[str]) -> None:
    """Raise ConfigError for an option that was removed or belongs to another command.

    The error names what to use instead.
    """
    command = arguments[0] if arguments else ""
    elsewhere = ELSEWHERE.get(command, {})
    removed = {**elsewhere, **REMOVED.get(command, {})}
    for position, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option not in removed:
            continue
        following = arguments[position + 1 : position + 2]
        if not equals and following and not following[0].startswith("--"):
            value = following[0]
        replacement = removed[option].format(value=shlex.quote(value) if value else "VALUE")
        if option in elsewhere:
            raise ConfigError(f"perpo {command} has no {option}", fix=f"use {replacement}")
        raise ConfigError(f"{option} was removed: use {replacement}")
