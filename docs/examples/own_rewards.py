"""Two rewards of one's own; run them with this folder on the Python path:

    PYTHONPATH=docs/examples perpo score --reward own_rewards:tight_iou

A reward gets the texts of the answers and columns with one value for each of them, which it names
as parameters. All columns:

    whole_completions   what the model wrote, with thoughts and tags
    prompt_id, dataset, task, prompt
    width, height       of the image, in pixels
    gt_text, gt_box, gt_boxes, gt_polygon, gt_point   the truth, each None where the prompt has none
    answer_box          the box that was read from the answer, None if there is none
    answer_boxes        all boxes of the answer, a list for each
    extra               the other columns of your data, a dict for each

Boxes are [x1, y1, x2, y2] in pixels of the original image, whatever the model writes. The last
three are made only for a function that names them. `**columns` takes the columns that you do not
need.
"""

from typing import Any

Box = list[float]


def tight_iou(
    completions: list[str],
    *,
    answer_box: list[Box | None],
    gt_box: list[Box | None],
    **columns: Any,
) -> list[float]:
    """IoU, times the share of the answered box that a box of the true size could cover.

    A box twice as large as the true one around it has an IoU of 0.5 and this reward of 0.25.
    """
    return [
        0.0 if found is None or true is None else _tight_iou(found, true)
        for found, true in zip(answer_box, gt_box, strict=True)
    ]


def keyword_recall(
    completions: list[str],
    *,
    gt_text: list[str | None],
    extra: list[dict[str, Any]],
    **columns: Any,
) -> list[float]:
    """The share of the keywords that an answer names, in any letter case.

    Keywords are the list `keywords` of the data, else the words of the true text.
    """
    rewards = []
    for completion, text, other in zip(completions, gt_text, extra, strict=True):
        keywords = other.get("keywords") or (text or "").split()
        named = [word for word in keywords if word.lower() in completion.lower()]
        rewards.append(len(named) / len(keywords) if keywords else 0.0)
    return rewards


def _tight_iou(found: Box, true: Box) -> float:
    sides = (
        max(0.0, min(found[2], true[2]) - max(found[0], true[0])),
        max(0.0, min(found[3], true[3]) - max(found[1], true[1])),
    )
    both, area, true_area = sides[0] * sides[1], _area(found), _area(true)
    if area <= 0 or both <= 0:
        return 0.0
    return both / (area + true_area - both) * min(1.0, true_area / area)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
