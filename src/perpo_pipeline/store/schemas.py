"""The pyarrow schema and version of every table that a stage writes.

The version goes up when a column is added or removed or changes its meaning; readers refuse a
version that they do not know. All text is UTF-8; boxes are xyxy in pixels of the original image;
log-probabilities are summed over tokens, in nats, at temperature 1. `image_notes` names the
conversions that made an image file RGB (vlm/images.py). `place` is where the dataset's file has the
row, for messages: `train.jsonl:2`, `train.json, record 2`. `resized` is the size at which the
vision tower saw the image, null if the image was cut into tiles.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa


@dataclass(frozen=True)
class TableSchema:
    """One table: its name, the version of its meaning and its columns.

    `roles` groups columns that readers take together: whoever needs the truth of a prompt asks for
    `role("truth")` and so gets a truth column that is added here later. `counted` is the version
    that enters fingerprints, where that is an older one: columns that are null in all that older
    versions could hold leave it as it is.
    """

    name: str
    version: int
    columns: pa.Schema
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    counted: int | None = None

    @property
    def counted_version(self) -> int:
        """The version that enters fingerprints."""
        return self.version if self.counted is None else self.counted

    def role(self, name: str) -> tuple[str, ...]:
        """The columns of a role; raises KeyError for a role that the table does not have."""
        return self.roles[name]

    def pick(self, *names: str, role: str | None = None) -> list[str]:
        """These columns, then those of `role`; raises KeyError for a name that is no column."""
        if unknown := [name for name in names if name not in self.columns.names]:
            raise KeyError(f"the table '{self.name}' has no column {', '.join(unknown)}")
        return [*names, *(self.roles[role] if role else ())]

    def empty(self, columns: Sequence[str] | None = None) -> pa.Table:
        """A table of these columns (default: all) without rows."""
        named = self.columns if columns is None else map(self.columns.field, columns)
        return pa.schema(named).empty_table()


def _table(
    name: str,
    version: int,
    /,
    roles: Mapping[str, tuple[str, ...]] | None = None,
    counted: int | None = None,
    **columns: pa.DataType | tuple[pa.DataType, bool],
) -> TableSchema:
    """Build a schema; a column given as `(type, True)` may hold nulls, others may not."""
    fields = []
    for column, spec in columns.items():
        kind, nullable = spec if isinstance(spec, tuple) else (spec, False)
        fields.append(pa.field(column, kind, nullable=nullable))
    return TableSchema(name, version, pa.schema(fields), roles or {}, counted)


STRING, INT32, INT64, FLOAT, BOOL = pa.string(), pa.int32(), pa.int64(), pa.float64(), pa.bool_()
TOKEN_IDS = pa.list_(INT32)
BOX = pa.list_(FLOAT)
POLYGON = pa.list_(FLOAT)  # x1, y1, x2, y2, ... in pixels of the original image
POINT = pa.list_(FLOAT)  # x, y in pixels of the original image
SIZE = pa.list_(INT32)  # width, height in pixels
IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", STRING)])
IMAGE_FACTS = pa.struct(
    [
        pa.field("sha256", STRING),
        pa.field("width", INT32),
        pa.field("height", INT32),
        pa.field("notes", pa.list_(STRING)),
    ]
)
TURNS = pa.list_(pa.struct([pa.field("role", STRING), pa.field("content", STRING)]))

# `extra` holds other columns of the dataset's row: a JSON object as text, null if there are none.
# `image` and the columns about it are the image that true boxes refer to. Where a prompt has
# several, the others are in `more_images`, in their order, with their facts in `more_image_facts`,
# and `box_image` is the place of `image` among all of them, from 0; all three are null for one
# image (store/prompt_images.py reads them).
# `history` holds the turns before the last one of the user, which is `prompt`; null if there is
# none. `<image>` in a user's text is the place of the next image; without any the images come
# first.
PROMPTS = _table(
    "prompts",
    7,
    counted=6,  # the columns of version 7 are null in what older versions hold
    roles={
        "size": ("width", "height"),
        "image": ("image", "image_sha256", "more_images", "more_image_facts", "box_image"),
        "sizes": ("width", "height", "more_image_facts", "box_image"),
        "asked": ("prompt", "history", "more_image_facts"),
        "truth": ("gt_text", "gt_box", "gt_boxes", "gt_polygon", "gt_point"),
    },
    prompt_id=STRING,
    dataset=STRING,
    split=STRING,
    task=STRING,
    source_row=STRING,
    place=STRING,
    image=IMAGE,
    image_sha256=STRING,
    image_notes=pa.list_(STRING),
    width=INT32,
    height=INT32,
    prompt=STRING,
    gt_text=(STRING, True),
    gt_box=(BOX, True),
    gt_boxes=(pa.list_(BOX), True),
    gt_polygon=(POLYGON, True),
    gt_point=(POINT, True),
    extra=(STRING, True),
    more_images=(pa.list_(IMAGE), True),
    more_image_facts=(pa.list_(IMAGE_FACTS), True),
    box_image=(INT32, True),
    history=(TURNS, True),
)
# The bad rows and images of a dataset that `leave_out_bad_rows` left out.
LEFT_OUT = _table("left_out", 1, place=STRING, reason=STRING, what=STRING)
SAMPLES = _table(
    "samples",
    2,
    roles={"key": ("prompt_id", "sample_id")},
    prompt_id=STRING,
    sample_id=INT32,
    completion=STRING,
    completion_token_ids=TOKEN_IDS,
    finish_reason=STRING,
    seed=INT64,
    sampler_logprob=(FLOAT, True),
    resized=(SIZE, True),
)
# The finish_reason of a prediction without an answer; its reason is in the table `errors`.
UNANSWERED = "unanswered"
SAMPLE_ERRORS = _table("errors", 2, prompt_id=STRING, place=STRING, reason=STRING)
SCORES = _table(
    "scores",
    1,
    roles={"key": ("prompt_id", "sample_id"), "measured": ("reward", "parse_ok")},
    prompt_id=STRING,
    sample_id=INT32,
    reward=FLOAT,
    parse_ok=BOOL,
    box=(BOX, True),
)
PREFERENCES = _table(
    "preferences",
    1,
    prompt_id=STRING,
    task=STRING,
    completions=pa.list_(STRING),
    completion_token_ids=pa.list_(TOKEN_IDS),
    finish_reasons=pa.list_(STRING),
    rewards=pa.list_(FLOAT),
    parse_ok=pa.list_(BOOL),
    counts=pa.list_(INT32),
    margin=FLOAT,
)
# A row without sample_id is a dropped list; a row with it is a completion left out of a kept list.
DROPPED_LISTS = _table(
    "dropped", 2, prompt_id=STRING, sample_id=(INT32, True), reason=STRING, margin=(FLOAT, True)
)
REFERENCE = _table("reference", 1, prompt_id=STRING, ref_logps=pa.list_(FLOAT))
ADAPTER_LOG = _table(
    "adapter",
    3,
    step=INT32,
    epoch=FLOAT,
    loss=FLOAT,
    learning_rate=FLOAT,
    grad_norm=FLOAT,
    reward_accuracy=(FLOAT, True),
    implicit_margin=(FLOAT, True),
    best_logp=(FLOAT, True),
    worst_logp=(FLOAT, True),
    kl=(FLOAT, True),
    tokens=INT32,
    tokens_per_s=FLOAT,
    mfu=(FLOAT, True),
    peak_memory_gib=(FLOAT, True),
)
PREDICTIONS = _table(
    "predictions",
    2,
    prompt_id=STRING,
    image_prompt_id=STRING,
    completion=STRING,
    completion_token_ids=TOKEN_IDS,
    finish_reason=STRING,
    resized=(SIZE, True),
    reward=FLOAT,
    parse_ok=BOOL,
    box=(BOX, True),
)
# One reply of a judge; `scores` are its numbers, in the order of the reply. `order` is 1 if the
# second model's answer was shown first. Replies from a review file have no prompt_sha256.
JUDGEMENTS = _table(
    "judgements",
    1,
    task=STRING,
    item_id=STRING,
    order=INT32,
    groups=pa.list_(STRING),
    model=(STRING, True),
    prompt_sha256=(STRING, True),
    reply=(STRING, True),
    finish_reason=(STRING, True),
    scores=(pa.list_(FLOAT), True),
    parse_ok=BOOL,
    failure=(STRING, True),
)
# One question of a general benchmark that another harness asked and scored, for each metric that is
# the mean of such scores; in the metric's own unit. `image` is null if the log names no image.
HARNESS = _table(
    "harness",
    1,
    task=STRING,
    metric=STRING,
    doc_id=STRING,
    question_sha256=STRING,
    image=(STRING, True),
    score=FLOAT,
)
# `dataset` is "all" for a whole split; a split with several datasets also has a row for each, and
# so has each value of a column of eval.by: a slice. Its `dataset` is COLUMN=VALUE, so that nobody
# takes it for the whole split; a null `slice_value` are the prompts without a value.
METRICS = _table(
    "metrics",
    3,
    name=STRING,
    value=FLOAT,
    low=FLOAT,
    high=FLOAT,
    n=INT64,
    split=STRING,
    dataset=STRING,
    slice_column=(STRING, True),
    slice_value=(STRING, True),
)
# A paired difference `better` - `worse`; `test` names the test behind the p-value.
_DIFFERENCE = {
    "metric": STRING,
    "better": STRING,
    "worse": STRING,
    "difference": FLOAT,
    "low": FLOAT,
    "high": FLOAT,
    "p_value": FLOAT,
    "test": STRING,
    "n": INT64,
}
REPORT = _table("report", 3, **_DIFFERENCE, split=STRING)
COMPARISON = _table("comparison", 1, **_DIFFERENCE)
# One measured cell of a sweep. `setting` is a JSON object of the varied settings by dotted key, as
# far as the method uses them. `seed` is null for the base, which is not trained (num_seeds 0), and
# for the mean over `num_seeds` seeds, whose interval is that of the prompts. `metrics` and
# `adapter` are the fingerprints of what the row was read from.
SWEEP = _table(
    "sweep",
    1,
    method=STRING,
    setting=STRING,
    seed=(INT64, True),
    num_seeds=INT32,
    metric=STRING,
    value=FLOAT,
    low=FLOAT,
    high=FLOAT,
    n=INT64,
    split=STRING,
    is_selected=BOOL,
    metrics=(STRING, True),
    adapter=(STRING, True),
)
# The difference of two methods' selected settings over prompts and seeds (evaluate/seeds.py): NaN
# where there is no test, as of one seed. `p_adjusted` is Holm's over all rows; `is_claimed`: it is
# below 0.05, and the settings were not chosen on these prompts.
SEED_DIFFERENCES = _table(
    "seed_differences",
    1,
    metric=STRING,
    better=STRING,
    worse=STRING,
    difference=FLOAT,
    low=FLOAT,
    high=FLOAT,
    p_value=FLOAT,
    p_adjusted=FLOAT,
    se_prompts=FLOAT,
    se_seeds=FLOAT,
    seeds_better=INT32,
    seeds_worse=INT32,
    n=INT64,
    split=STRING,
    is_claimed=BOOL,
)
# What one model of `perpo iterate` reaches on a split: the base (round 0), each round, and the one
# round beside them (null). `difference` is the paired one to `against`; `gains`: it is in the
# better direction, with a p-value below rounds.alpha where that is set. `num_...` are those of this
# round alone. `model` names the model that was sampled and trained on, `merged` what came of it;
# `metrics` and `adapter` are fingerprints.
ROUNDS = _table(
    "rounds",
    1,
    round=(INT32, True),
    name=STRING,
    split=STRING,
    metric=STRING,
    value=FLOAT,
    low=FLOAT,
    high=FLOAT,
    n=INT64,
    against=(STRING, True),
    difference=(FLOAT, True),
    difference_low=(FLOAT, True),
    difference_high=(FLOAT, True),
    p_value=(FLOAT, True),
    test=(STRING, True),
    gains=(BOOL, True),
    is_chosen=BOOL,
    num_prompts=INT64,
    num_samples=INT64,
    num_lists=INT64,
    model=STRING,
    merged=(STRING, True),
    adapter=(STRING, True),
    adapter_sha256=(STRING, True),
    metrics=STRING,
)

ALL = {
    table.name: table
    for table in (
        PROMPTS,
        LEFT_OUT,
        SAMPLES,
        SAMPLE_ERRORS,
        SCORES,
        PREFERENCES,
        DROPPED_LISTS,
        REFERENCE,
        ADAPTER_LOG,
        PREDICTIONS,
        JUDGEMENTS,
        HARNESS,
        METRICS,
        REPORT,
        COMPARISON,
        SWEEP,
        SEED_DIFFERENCES,
        ROUNDS,
    )
}
