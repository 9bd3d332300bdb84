"""Progress on stderr: a bar on a terminal, a line per minute in a log.

The time left follows from the speed of about the last minute. Its clock starts at the first
finished items, so neither loading nor the first, slow call counts; until then the bar says what is
being done. Messages are printed above a bar, never behind it (`write`).
"""

import math
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

LINE_EVERY_S = 60.0
RECENT_S = 60.0
TICK_S = 1.0
WIDTH_OF_BAR = 12
BAR = f"{{desc}} {{percentage:3.0f}}%|{{bar:{WIDTH_OF_BAR}}}| {{n_fmt}}/{{total_fmt}}{{postfix}}"

_open: list["Bar"] = []


class Speed:
    """Items per second, as an exponential mean over about a minute.

    The first `wave` items are computed side by side and only start the clock.
    """

    def __init__(self, wave: int = 1) -> None:
        self.wave, self.seen = wave, 0
        self.items = self.seconds = 0.0
        self.began: float | None = None
        self.last = 0.0

    def add(self, items: int, now: float) -> None:
        """Count items that are finished at `now`, in seconds."""
        self.seen += items
        if self.began is None:
            if self.seen >= self.wave:
                self.began = self.last = now
            return
        if not items or now <= self.last:
            return
        kept = math.exp((self.last - now) / RECENT_S)
        self.items = self.items * kept + items
        self.seconds = self.seconds * kept + now - self.last
        self.last = now

    @property
    def per_s(self) -> float | None:
        """The speed, None while it is unknown."""
        return self.items / self.seconds if self.seconds else None


class Bar:
    """Counts finished items; `doing` says what happens before the first.

    `wave` items are computed side by side. `figures` are shown behind the time left.
    """

    def __init__(
        self,
        what: str,
        total: int | None = None,
        *,
        initial: int = 0,
        unit: str = "items",
        wave: int = 1,
        doing: str = "",
        quiet: bool = False,
    ) -> None:
        self.what, self.total, self.n, self.unit, self.doing = what, total, initial, unit, doing
        self.speed, self.figures = Speed(wave), dict[str, str]()
        self.began = self.phase_began = self.printed_at = time.monotonic()
        self.has_counted = self.is_closed = False
        self.quiet, self.bar = quiet, None if quiet or not sys.stderr.isatty() else self._tqdm()
        self.ended, self.lock = threading.Event(), threading.RLock()
        if not quiet:
            _open.append(self)
            threading.Thread(target=self._tick, daemon=True).start()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def phase(self, doing: str) -> None:
        """Say what happens from now on, until the first item is finished."""
        with self.lock:
            self.doing, self.phase_began = doing, time.monotonic()
        self._show()

    def update(self, items: int = 1, figures: Mapping[str, str] | None = None) -> None:
        """Count finished items, and show figures about them."""
        now = time.monotonic()
        with self.lock:
            self.n += items
            self.has_counted = self.has_counted or items > 0
            self.figures.update(figures or {})
            self.speed.add(items, now)
        self._show()

    def skip(self, items: int) -> None:
        """Count items that were finished earlier."""
        with self.lock:
            self.n += items

    def close(self) -> None:
        """Clear the bar."""
        with self.lock:
            self.is_closed = True
            self.ended.set()
            if self.bar is not None:
                self.bar.close()
        if self in _open:
            _open.remove(self)

    def line(self) -> str:
        """`sample train: 120 of 375 prompts, 2.1/s, tokens/s 51, 4 min left`."""
        if not self.has_counted:
            waited = time_text(time.monotonic() - self.phase_began)
            return f"{self.what}: {self.doing or f'{self.n:,} {self.unit}'}, {waited}"
        of = "" if self.total is None else f" of {self.total:,}"
        listed = [f"{self.n:,}{of} {self.unit}", self._rate()]
        listed += [f"{name} {value}" for name, value in self.figures.items()]
        return f"{self.what}: {', '.join(filter(None, [*listed, self._left()]))}"

    def _rate(self) -> str:
        per_s = self.speed.per_s
        if per_s is None:
            return ""
        return f"{per_s:.3g}/s" if per_s >= 1 else f"{1 / per_s:.3g} s each"

    def _left(self) -> str:
        """The time left at the speed of about the last minute."""
        per_s = self.speed.per_s
        if not per_s or self.total is None:
            return ""
        since = time.monotonic() - self.speed.last
        left = max((self.total - self.n) / per_s - since, 0.0)
        return f"{time_text(left)} left"

    def _tqdm(self) -> Any:
        from tqdm import tqdm

        return tqdm(
            desc=self.what,
            total=self.total,
            initial=self.n,
            file=sys.stderr,
            leave=False,
            dynamic_ncols=True,
            bar_format="{desc}{postfix}",
        )

    def _show(self) -> None:
        with self.lock:
            if self.is_closed or self.quiet:
                return
            if self.bar is not None:
                self._draw(self.bar)
            elif time.monotonic() - self.printed_at >= LINE_EVERY_S:
                self._print_line()

    def print_last_line(self) -> None:
        """Print the line of a log now; nothing on a terminal."""
        if self.bar is None and not self.quiet:
            self._print_line()

    def _print_line(self) -> None:
        self.printed_at = time.monotonic()
        print(self.line(), file=sys.stderr, flush=True)

    def _draw(self, bar: Any) -> None:
        if not self.has_counted or self.total is None:
            bar.bar_format = "{desc}{postfix}"
            bar.set_postfix_str(self.line().removeprefix(f"{self.what}: "), refresh=False)
        else:
            bar.bar_format = BAR
            bar.set_postfix_str(self._figures_that_fit(), refresh=False)
        bar.n = self.n
        bar.refresh()

    def _figures_that_fit(self) -> str:
        """The time left, the speed and as many figures as the line has room for."""
        columns = shutil.get_terminal_size().columns
        room = columns - len(f"{self.what} 100%||{self.n}/{self.total}, ") - WIDTH_OF_BAR - 1
        figures = [f"{name} {value}" for name, value in self.figures.items()]
        shown = ""
        for figure in filter(None, [self._left(), self._rate(), *figures]):
            longer = f"{shown}, {figure}" if shown else figure
            if len(longer) > room:
                break
            shown = longer
        return shown

    def _tick(self) -> None:
        while not self.ended.wait(TICK_S):
            self._show()


def write(message: str) -> None:
    """Print a message to stderr, above the open bars."""
    if any(bar.bar is not None for bar in _open):
        from tqdm import tqdm

        tqdm.write(message, file=sys.stderr)
        sys.stderr.flush()
    else:
        print(message, file=sys.stderr, flush=True)


def close_all() -> None:
    """Clear the bars that an error left open."""
    for bar in [*_open]:
        bar.close()


def time_text(seconds: float) -> str:
    """`89 s`, `2 min`, `2.5 h`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
