"""Two box formats of one's own; use them with this folder on the Python path:

    PYTHONPATH=docs/examples perpo sample --set model.box_format=own_formats:YXYX

A format says how a box is asked for (`instruction`), how it is found in an answer (`pattern`, with
the groups x1, y1, x2, y2 in any order), how it is written for SFT (`template`), and what its
numbers are (`scale`: units across the frame, None for pixels; `bins=True` for indices of bins,
`cells=True` for a first and a last cell; `y_first=True` for points and polygons in [y, x]). perpo
checks that the pattern reads what the template writes.
"""

import re

from perpo_pipeline.answers import BoxFormat

NUMBER = r"\s*(?P<{}>[0-9]+(?:\.[0-9]+)?)\s*"

# y before x, in thousandths of the image: {"box_2d": [ymin, xmin, ymax, xmax]}
YXYX = BoxFormat(
    name="yxyx",
    pattern=re.compile(
        r'"box_2d"\s*:\s*\[' + ",".join(map(NUMBER.format, ("y1", "x1", "y2", "x2"))) + r"\]"
    ),
    template='{{"box_2d": [{y1}, {x1}, {y2}, {x2}]}}',
    scale=1000.0,
    instruction='Find {expression}. Answer with JSON, "box_2d": [ymin, xmin, ymax, xmax], from 0 '
    "to 1000.",
)

# Corners as attributes of a tag, in pixels of the image: <region left="12" top="34" .../>
TAG = BoxFormat(
    name="tag",
    pattern=re.compile(
        r'<region left="(?P<x1>[0-9]+)" top="(?P<y1>[0-9]+)" '
        r'right="(?P<x2>[0-9]+)" bottom="(?P<y2>[0-9]+)"\s*/>'
    ),
    template='<region left="{x1}" top="{y1}" right="{x2}" bottom="{y2}"/>',
    scale=None,
    instruction="Mark {expression} in the image with one <region/> tag, in pixels.",
    no_target="<nothing/>",
)
