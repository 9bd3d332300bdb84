"""What an answer says: box formats and frames, reading answers, checks of truths."""

from perpo_pipeline.answers.formats import BOX_FORMATS, BoxFormat, get_box_format

__all__ = ["BOX_FORMATS", "BoxFormat", "get_box_format"]
