"""One item of a proof, the document that holds all of them, and how they are run within a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

State = Literal["passed", "failed", "skipped"]
SECONDS = 600.0  # for all checks together
_LONGEST_REASON = 500  # characters

Figures = dict[str, float | int | str]


class Skipped(Exception):
    """A check that cannot be made on this machine; the text says why."""


class Item(BaseModel):
    """What one check found."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    state: State
    reason: str = ""  # why it failed or was skipped
    figures: Figures = {}
    seconds: float = 0.0


class Proof(BaseModel):
    """What `ducat doctor --gpu --out FILE` writes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str
    machine: Figures
    items: tuple[Item, ...]

    @property
    def failed(self) -> list[Item]:
        """The checks that did."""
        return [item for item in self.items if item.state == "failed"]


class Check(NamedTuple):
    """A name, and what to call; it returns figures, raises Skipped, or raises anything else because it failed."""

    name: str
    call: Callable[[], Figures]


def run_checks(
    checks: Sequence[Check], *, seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic
) -> tuple[Item, ...]:
    """Make every check; those that are reached after ``seconds`` are skipped, and no check stops the others."""
    started = clock()
    items = []
    for check in checks:
        begun = clock()
        if begun - started >= seconds:
            items.append(Item(name=check.name, state="skipped", reason=f"the {seconds:.0f} s are over"))
            continue
        state: State = "passed"
        reason, figures = "", Figures()
        try:
            figures = check.call()
        except Skipped as why:
            state, reason = "skipped", str(why)
        except Exception as error:
            state, reason = "failed", f"{type(error).__name__}: {error}"[:_LONGEST_REASON]
        items.append(
            Item(
                name=check.name,
                state=state,
                reason=reason,
                figures=figures,
                seconds=round(clock() - begun, 2),
            )
        )
    return tuple(items)


def require(condition: bool, failure: str) -> None:
    """Fail a check with a sentence."""
    if not condition:
        raise AssertionError(failure)
