"""`perpo report`."""

from perpo_pipeline.commands.options import (
    DEFAULT_CONFIG,
    AllowStale,
    Config,
    Debug,
    Out,
    Quiet,
    RunName,
    Set,
    open_run,
)


def report(
    config: Config = DEFAULT_CONFIG,
    sets: Set = None,
    run: RunName = None,
    out: Out = None,
    allow_stale: AllowStale = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write one self-contained HTML page that shows what changed.

    Reads everything that the run has made; prints the path of the page.

    Example: perpo report --config configs/demo.yaml
    """
    from perpo_pipeline.report.write_report import report as report_stage

    opened = open_run(config, sets, run=run, out=out, quiet=quiet, allow_stale=allow_stale)
    print(report_stage(opened).path / "report.html")
