"""Names of evaluations: a model, and the image that it is shown where that is not its own."""

BASE = "base"
OTHER_IMAGE, BLANK_IMAGE = "-other-image", "-blank-image"


def model_of(evaluation: str) -> str:
    """The model that an evaluation measures: its name without the suffix for another image."""
    return evaluation.removesuffix(OTHER_IMAGE).removesuffix(BLANK_IMAGE)
