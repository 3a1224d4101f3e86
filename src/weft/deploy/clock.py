"""Waiting, in a machine that may sleep."""

from __future__ import annotations

import time

LONGEST = 5.0
"""Seconds that can lie between two questions; what is above, nobody was there to ask."""


class Clock:
    """Counts the seconds in which this process has waited: few of those in which its machine slept."""

    def __init__(self) -> None:
        self._last, self._sum = time.monotonic(), 0.0

    def waited(self) -> float:
        """Seconds since the beginning; to be asked often."""
        now = time.monotonic()
        self._sum, self._last = self._sum + min(now - self._last, LONGEST), now
        return self._sum
