"""How many images a client may ask about: a rate with bursts, and a budget per day.

Attacks that only see answers need thousands of queries for each image that they break, so a budget is part of the
defence (docs/how-to/keys-and-budgets.md has figures). Counted in images, since a request may hold many.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from service.errors import APIError

_DAY = 86_400


@dataclass
class Quota:
    """What one client has left.

    Args:
        rate: images per second; None for no limit.
        burst: images at once.
        daily: images per day (UTC); None for no limit. A new day brings a new budget, and so do 24 hours without one:
            a calendar that was once wrong by a year must not take the budgets of that year.
        clock: seconds that never go back. calendar: seconds since 1970, which may.
    """

    rate: float | None
    burst: int
    daily: int | None
    clock: Callable[[], float] = time.monotonic
    calendar: Callable[[], float] = time.time
    _tokens: float = field(init=False)
    _seen: float = field(init=False)
    _day: int = field(init=False)
    _renewed: float = field(init=False)  # on the clock
    _spent: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._tokens, self._seen = float(self.burst), self.clock()
        self._day, self._renewed = self._today(), self._seen

    def require(self, images: int) -> None:
        """Raise APIError (429, with Retry-After) unless ``images`` could be charged now; nothing is charged."""
        self._refill()
        if self.daily is not None and self._spent + images > self.daily:
            midnight = (self._day + 1) * _DAY - self.calendar()
            left = min(midnight, self._renewed + _DAY - self._seen)
            message = (
                f"The budget of {self.daily} images per day is spent; {self.daily - self._spent} are left."
            )
            raise APIError(429, "budget_spent", message, retry_after=max(1.0, left))
        if self.rate is not None and self._tokens < images:
            message = f"More than {self.rate:g} images per second."
            raise APIError(429, "rate_limited", message, retry_after=(images - self._tokens) / self.rate)

    def require_enough_in_a_day(self, images: int) -> None:
        """Raise APIError (413) for more images than the budget of a whole day, which no waiting helps."""
        if self.daily is not None and images > self.daily:
            message = f"{images} images are more than the whole budget of {self.daily} images per day."
            raise APIError(413, "too_many_images", message)

    def charge(self, images: int) -> None:
        """Take ``images`` from what is left. Raises APIError (429) where that is less; then nothing is taken."""
        self.require(images)
        self._tokens -= images
        self._spent += images

    def refund(self, images: int) -> None:
        """Give images back to the budget of the day that were charged and not answered.

        The rate keeps them: it bounds the work that a client causes, and that was done or will be tried again soon.
        """
        self._spent = max(0, self._spent - images)  # a new day may have begun meanwhile

    def _refill(self) -> None:
        now = self.clock()
        if self.rate is not None:
            self._tokens = min(float(self.burst), self._tokens + (now - self._seen) * self.rate)
        self._seen = now
        today = self._today()
        # Not for any other day: a calendar that goes back gives nobody a second budget.
        if today > self._day or now - self._renewed >= _DAY:
            self._day, self._renewed, self._spent = today, now, 0

    def _today(self) -> int:
        return int(self.calendar() // _DAY)
