"""`perpo make-rules`: hidden from --help; the Makefile calls it."""

from perpo_pipeline.commands.options import (
    DEFAULT_CONFIG,
    Config,
    Debug,
    RunName,
    Set,
    read_config,
)


def make_rules(
    config: Config = DEFAULT_CONFIG, sets: Set = None, run: RunName = None, debug: Debug = False
) -> None:
    """Print a run's splits, methods and evaluations.

    Reads only the run's YAML file. Prints Make variables, which the Makefile includes.

    Example: perpo make-rules --config configs/demo.yaml
    """
    from perpo_pipeline.config.sources import source_files

    settings = read_config(config, sets, run=run)
    sources = [str(file) for source in settings.prepare.values() for file in source_files(source)]
    print(f"DATA := {settings.run_dir}")
    print(f"SPLITS := {' '.join(settings.prepare)}")
    print(f"SAMPLE_SPLIT := {settings.sample.split}")
    print(f"EVAL_SPLITS := {' '.join(settings.eval.splits)}")
    print(f"ADAPTERS := {' '.join(settings.train.variants())}")
    print(f"EVALUATED := {' '.join(settings.eval_models())}")
    for model in settings.eval_models():
        names = [evaluation.name for evaluation in settings.eval.evaluations_of(model)]
        print(f"EVALUATIONS_{model} := {' '.join(names)}")
    print(f"SOURCES := {' '.join(sources)}")
