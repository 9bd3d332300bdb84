"""The reward of an answer that outlines a region: how much the two regions overlap."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import shapely

Floats = npt.NDArray[np.float64]

LARGEST = 1e9  # largest coordinate: beyond any image, and far below where areas overflow
MOST_CROSSING_POINTS = 200  # time grows with their square: 0.7 s for 200, minutes for thousands
DECIMALS = 9  # of rounded coordinates: Shapely cannot compute with differences of 1e-160


def polygon_ious(
    pred: Sequence[npt.ArrayLike | None], gt: Sequence[npt.ArrayLike | None]
) -> Floats:
    """Intersection over union of predicted and true regions, pair by pair, in [0, 1].

    Both have n outlines `(k, 2)`, x and y in one unit, closed or not; the result is `(n,)`,
    float64. A region is what its outline winds around (the nonzero rule): an outline may
    start anywhere, run in either direction and repeat points or itself; one that crosses itself
    encloses all of its lobes. One that crosses or touches itself and has more than
    `MOST_CROSSING_POINTS` points is no region. None (an unparsed answer), fewer than 3 points,
    NaN and numbers beyond `LARGEST` are no region and give 0, in either array; so does a pair of
    regions without area. Raises ValueError for other shapes. Source: as `iou_xyxy`, with Shapely's
    areas.
    """
    if len(pred) != len(gt):
        raise ValueError(f"pred has {len(pred)} polygons, gt has {len(gt)}")
    ours = [_as_outline(outline, "pred") for outline in pred]
    truths = [_as_outline(outline, "gt") for outline in gt]
    pairs = zip(ours, truths, strict=True)
    rows = np.flatnonzero([a is not None and b is not None for a, b in pairs])
    ious = np.zeros(len(pred))
    if rows.size:
        a, b = (_regions([side[row] for row in rows]) for side in (ours, truths))
        overlap = shapely.area(shapely.intersection(a, b))
        union = shapely.area(a) + shapely.area(b) - overlap
        np.divide(overlap, union, out=overlap, where=union > 0)
        ious[rows] = np.where(union > 0, np.clip(overlap, 0.0, 1.0), 0.0)
    return ious


def _as_outline(outline: npt.ArrayLike | None, name: str) -> Floats | None:
    """The points, None if they are not an outline."""
    if outline is None:
        return None
    points = np.asarray(outline, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"the outlines of {name} must have the shape (k, 2), not {points.shape}")
    is_outline = len(points) >= 3 and bool((np.abs(points) <= LARGEST).all())  # False for NaN
    return points.round(DECIMALS) if is_outline else None


def _regions(outlines: list[Floats]) -> npt.NDArray[np.object_]:
    """Valid polygons or collections of them, empty for an outline that winds around nothing."""
    index = np.repeat(np.arange(len(outlines)), [len(points) for points in outlines])
    rings = shapely.linearrings(np.concatenate(outlines), indices=index)
    regions = np.asarray(shapely.polygons(rings))
    for row in np.flatnonzero(~shapely.is_valid(regions)):
        regions[row] = _wound_region(outlines[row], rings[row])
    return regions


def _wound_region(points: Floats, ring: shapely.LinearRing) -> shapely.Geometry:
    """The region that an outline winds around if it crosses or touches itself.

    `make_valid` would not do: its result for spikes depends on where the outline starts.
    """
    if len(points) > MOST_CROSSING_POINTS:
        return shapely.Polygon()
    lines = shapely.union_all([ring])  # cut where they meet
    faces = shapely.get_parts(shapely.polygonize([lines]))
    inside = shapely.get_coordinates(shapely.point_on_surface(faces))
    return shapely.union_all(faces[_winding_numbers(points, inside) != 0])


def _winding_numbers(outline: Floats, points: Floats) -> npt.NDArray[np.int64]:
    """How often the outline turns around each point: edges crossed to its right, up less down."""
    (x1, y1), (x2, y2) = outline.T, np.roll(outline, -1, axis=0).T
    x, y = points[:, :1], points[:, 1:]
    crosses = (y1 <= y) != (y2 <= y)
    share = np.divide(y - y1, y2 - y1, out=np.zeros(crosses.shape), where=crosses)
    is_right = x1 + share * (x2 - x1) > x
    return np.asarray(np.where(crosses & is_right, np.sign(y2 - y1), 0).sum(axis=1), np.int64)
