"""PerPO beside training that draws its own samples, and beside TRL's trainers, at equal cost.

    python benchmarks/against_online.py --out data/against-online
    python benchmarks/against_online.py --task ocr --out data/against-online-ocr
    python benchmarks/against_online.py --quick --out /tmp/against-online

perpo     ours: sample, score, filter, train; the cost of all four is counted
sft       ours, on the truth of the same prompts; only its training is counted
grpo      TRL's GRPOTrainer on the same prompts, with the reward that `perpo score` computes
trl-dpo   TRL's DPOTrainer on the best and worst completion of our lists
rft       TRL's SFTTrainer on the best completion of our lists (rejection sampling)

All of them start from one base model, train the same LoRA on the same number of cores (one thread
by default), and have a grid of as many settings. The validation split chooses a setting of each
way; the test split is reported. Cost is processor time, user and system, of a process and those
that it starts, because other programs on the machine change it less than time on the wall; with one
thread on a free core the two are equal. TRL's trainers stop at `--max-seconds` (default: what
PerPO's longest setting took), and are measured at four points on the way. Ours is run anew on a
quarter and on half of the prompts. Trainers that start from our lists have paid for them first.

What is simplified: one seed; imports and the rendering of prompts count for nobody; evaluation
does not count. What is done is kept in `--out`: the same command goes on after a kill, and makes
only the trainings and evaluations that are missing. Needs the dev extra (trl, datasets).
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from figures import save
from online import ours, trl_ways
from online.apart import start_server
from online.evaluate import measure
from online.plan import SWEEPS, Plan, Way, quick, root
from online.show import draw, table, with_differences

from perpo_pipeline.evaluate.metrics import METRICS
from perpo_pipeline.interrupts import sigterm_like_ctrl_c

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    plan = parse(arguments)
    start_server(plan.threads)
    check_same(plan)
    ours.prepare_evaluation(plan)
    limit = limit_of(plan)
    rows = base_row(plan)
    for way in plan.ways():
        rows += rows_of(plan, way, limit)
        shown = write(plan, limit, rows)
    print("\n".join(table(shown, plan.metric)))
    return shown


def write(plan: Plan, limit: float, rows: Sequence[Row]) -> list[Row]:
    """Table, figures and picture of what is measured so far."""
    shown = with_differences(rows, plan.metric)
    text = "\n".join(table(shown, plan.metric)) + "\n"
    (plan.out / "table.md").write_text(text, encoding="utf-8")
    found = [{name: row[name] for name in row if name != "values"} for row in shown]
    save(plan.out / "result.json", {"limit_s": limit, "metric": plan.metric, "rows": found})
    for suffix in ("svg", "png"):
        draw(shown, plan.metric, plan.out / f"curves.{suffix}")
    return shown


def parse(arguments: Sequence[str] | None) -> Plan:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=list(SWEEPS), default="grounding")
    parser.add_argument("--sweep", type=Path, help="a sweep's file: the run and our settings")
    parser.add_argument("--out", type=Path, required=True, help="folder of all that is made")
    parser.add_argument("--threads", type=int, default=1, help="threads of each training")
    parser.add_argument(
        "--max-seconds", type=float, help="processor seconds of each trainer of TRL"
    )
    parser.add_argument("--settings", type=int, default=5, help="settings of each way's grid")
    parser.add_argument("--quick", action="store_true", help="a few prompts and one step each")
    options = parser.parse_args(arguments)
    sweep = options.sweep or root() / SWEEPS[options.task]
    plan = Plan(
        sweep,
        options.out.resolve(),
        options.task,
        {},
        options.threads,
        options.max_seconds,
        settings_per_way=options.settings,
    )
    return quick(plan) if options.quick else plan


def check_same(plan: Plan) -> None:
    """Raise SystemExit if `--out` holds a comparison with other options."""
    file, options = plan.out / "options.json", plan.as_json()
    if file.is_file() and ours.read(file) != options:
        raise SystemExit(f"{file} has other options than this command; give another --out")
    save(file, options)


def limit_of(plan: Plan) -> float:
    """Processor seconds of each trainer of TRL."""
    if plan.max_seconds is not None:
        return plan.max_seconds
    (perpo,) = [way for way in plan.ways() if way.name == "perpo"]
    return max(train(plan, perpo, setting, 0.0)[-1]["cpu_s"] for setting in perpo.settings)


def train(plan: Plan, way: Way, setting: str, limit: float) -> list[Row]:
    """The points of one setting."""
    if way.method is not None:
        point = ours.train(ours.part_of(plan), setting, way.needs_lists)
        say(f"{setting}: trained for {point['cpu_s']:,.0f} processor seconds")
        return [point]
    points = trl_ways.train(plan, way, setting, limit)
    used = f"{setting}: trained until {points[-1]['cpu_s']:,.0f} processor seconds"
    say(f"{used}, {trl_ways.learned(plan, way, setting)}")
    return points


def rows_of(plan: Plan, way: Way, limit: float) -> list[Row]:
    """Test rows of the setting that the validation split chooses."""
    found = {setting: train(plan, way, setting, limit) for setting in way.settings}
    chosen, values = choose(plan, found)
    points = found[chosen]
    if way.method is not None:
        parts = [ours.part_of(plan, share) for share in plan.parts[:-1]]
        points = [*(ours.train(part, chosen, way.needs_lists) for part in parts), *points]
    settings = ours.flat(way.settings[chosen])
    rows = [row(plan, way, settings, point) | {"validation": values} for point in points]
    if way.name == "perpo":
        several = replace(way, name="perpo-rounds", label=f"PerPO, {plan.rounds} rounds")
        several = replace(several, colour="#6aa5ff")
        rows += [row(plan, several, settings, one) for one in ours.train_rounds(plan, chosen)]
    return rows


def choose(plan: Plan, found: dict[str, list[Row]]) -> tuple[str, dict[str, float]]:
    """The setting whose last checkpoint is best on the validation split, and all their values.

    A single setting is not measured there.
    """
    if len(found) == 1:
        return next(iter(found)), {}
    values = {}
    for setting, points in found.items():
        values[setting] = measure(plan, points[-1], "validation")["value"]
        say(f"{setting}: {plan.metric} {values[setting]:.4f} on the validation split")
    best = max if METRICS[plan.metric].higher_is_better else min
    return best(values, key=lambda setting: values[setting]), values


def row(plan: Plan, way: Way, setting: str, point: Row) -> Row:
    """A checkpoint and its metric on the test split."""
    names = {"way": way.name, "label": way.label, "colour": way.colour, "setting": setting}
    found = names | point | measure(plan, point, "test")
    say(
        f"{way.name} after {point['cpu_s']:,.0f} processor seconds: {plan.metric} "
        f"{found['value']:.4f} on the test split"
    )
    return found


def base_row(plan: Plan) -> list[Row]:
    """The base, which costs nothing."""
    base = Way("base", "base", "#5b6470", {})
    return [row(plan, base, "-", {"cpu_s": 0.0, "samples": 0, "steps": 0})]


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    with sigterm_like_ctrl_c():
        main()
