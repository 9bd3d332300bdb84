"""The losses of one step of the testbed's pretraining, for its scenes and for its pages."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from tools.testbed.learner import Learner
from tools.testbed.packing import IGNORE, Batch
from tools.testbed.page_rows import PageBatch


def part_losses(
    learner: Learner,
    part: Batch | PageBatch,
    features: Tensor,
    *,
    answering: bool,
    further: bool,
) -> dict[str, Tensor]:
    """The losses (nats) of a step's scenes or pages, by name.

    features: the projected patches (B, P, W) of the pictures. `answering` includes the loss of
    boxes and texts, `further` those of the tasks that teach the model to see and to point.
    """
    if isinstance(part, Batch):
        return _scene_losses(learner, part, features, answering=answering, further=further)
    return _page_losses(learner, part, features, answering=answering, further=further)


def _scene_losses(
    learner: Learner, scenes: Batch, features: Tensor, *, answering: bool, further: bool
) -> dict[str, Tensor]:
    device = features.device
    patches, labels = scenes.patches.to(device), scenes.labels.to(device)
    losses: dict[str, Tensor] = {}
    if further:
        losses["objects"] = learner.object_loss(features, patches)
        losses["names"] = learner.naming_loss(features, patches)
    if answering:
        ids, keep = scenes.slot_ids.to(device), labels != IGNORE
        logits, looks = learner.scene_logits(features, ids, keep)
        losses["boxes"] = F.cross_entropy(logits.float(), labels[keep])
        if further:
            losses["looks"] = learner.looking_loss(looks, ids, patches)
    return losses


def _page_losses(
    learner: Learner, pages: PageBatch, features: Tensor, *, answering: bool, further: bool
) -> dict[str, Tensor]:
    device = features.device
    patches, labels = pages.patches.to(device), pages.labels.to(device)
    losses: dict[str, Tensor] = {}
    if further:
        losses["characters"] = learner.character_loss(features, patches)
        losses["spelling"] = learner.spelling_loss(features, patches)
    if answering:
        keep = labels != IGNORE
        logits, *points = learner.page_logits(features, pages.ids.to(device), keep)
        losses["text"] = F.cross_entropy(logits.float(), labels[keep])
        if further:
            where = [pages.rows.to(device)[keep], pages.columns.to(device)[keep]]
            losses["points"] = pointing_loss(points, where)
    return losses


def pointing_loss(points: Sequence[Tensor], places: Sequence[Tensor]) -> Tensor:
    """Cross-entropy of the rows and of the columns of patches, (M, grid) against (M,) each."""
    rows, columns = (
        F.cross_entropy(point, place, ignore_index=IGNORE)
        for point, place in zip(points, places, strict=True)
    )
    return rows + columns
