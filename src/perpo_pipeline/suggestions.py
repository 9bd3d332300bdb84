"""What a user who mistyped a name or a path may have meant."""

import difflib
from collections.abc import Iterable
from pathlib import Path


def closest(name: str, names: Iterable[str]) -> str | None:
    """The name that is most like `name`, upper and lower case aside; None if none is near."""
    known = {one.lower(): one for one in names}
    near = difflib.get_close_matches(name.lower(), list(known), n=1)
    return known[near[0]] if near else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'sample'?`, or nothing if none of `names` is near."""
    near = closest(name, names)
    return f"; did you mean '{near}'?" if near else ""


def closest_path(path: Path) -> Path | None:
    """An existing path like `path`, each missing part of it replaced by the nearest name there."""
    found = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        here = found / part
        if not here.exists():
            try:
                names = [one.name for one in found.iterdir()]
            except OSError:
                return None
            near = closest(part, names) or _same_stem(part, names)
            if near is None:
                return None
            here = found / near
        found = here
    return found if found != path else None


def _same_stem(name: str, names: Iterable[str]) -> str | None:
    """`demo.yaml` for `demo.yml`."""
    stem = Path(name).stem
    return next((one for one in sorted(names) if Path(one).stem == stem), None)
