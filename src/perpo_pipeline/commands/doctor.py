"""`perpo doctor`."""

from perpo_pipeline.commands.options import Debug


def doctor(debug: Debug = False) -> None:
    """Print what this machine can run, and how to install the rest.

    Example: perpo doctor
    """
    from perpo_pipeline.doctor import examine

    print(examine())
