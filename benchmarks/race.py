"""A race between two trainings: whose turn it is, and when each was as accurate and robust as one asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Measurement:
    """After an epoch: wall-clock seconds that were spent on training so far, and accuracies in [0, 1]."""

    epoch: int
    seconds: float
    clean: float
    pgd: float


@dataclass
class Progress:
    """How far one of the two has come."""

    epochs: int  # after which it gives up
    seconds: float = 0.0
    images: int = 0
    measurements: list[Measurement] = field(default_factory=list)

    @classmethod
    def read(cls, document: dict[str, Any]) -> Progress:
        known = [Measurement(**measured) for measured in document["measurements"]]
        return cls(document["epochs"], document["seconds"], document["images"], known)

    def reached(self, clean: float, pgd: float) -> float | None:
        """Seconds until the first epoch at whose end both accuracies were there; None if none has been."""
        found = (m.seconds for m in self.measurements if m.clean >= clean and m.pgd >= pgd)
        return next(found, None)

    def is_done(self, clean: float, pgd: float) -> bool:
        return len(self.measurements) >= self.epochs or self.reached(clean, pgd) is not None


def take_turns(
    ours: Progress,
    textbook: Progress,
    clean: float,
    pgd: float,
    *,
    epoch_of_ours: Callable[[], None],
    textbook_until: Callable[[float], None],
    after_each: Callable[[], None],
) -> None:
    """Let both train until each has reached the pair or given up.

    Args:
        epoch_of_ours: trains and measures one epoch, and adds it to ``ours``.
        textbook_until: trains until it has had this many seconds or has ended an epoch, and adds that to ``textbook``.
        after_each: called after each turn.
    """
    while not (ours.is_done(clean, pgd) and textbook.is_done(clean, pgd)):
        if not ours.is_done(clean, pgd):
            epoch_of_ours()
            after_each()
            until = ours.seconds
        else:  # alone it goes on in turns as long, so that what it did is written down as often
            until = textbook.seconds + ours.seconds / len(ours.measurements)
        while textbook.seconds < until and not textbook.is_done(clean, pgd):
            textbook_until(until)
            after_each()


def pairs(ours: Progress, textbook: Progress) -> list[tuple[Measurement, float | None]]:
    """What the textbook had after each of its epochs, and after how many seconds ours had as much of both."""
    return [(had, ours.reached(had.clean, had.pgd)) for had in textbook.measurements]


def summary(ours: Progress, textbook: Progress, clean: float, pgd: float) -> dict[str, Any]:
    """Both, and how many times as long the textbook took; None while one of them has not reached the pair."""
    times = [one.reached(clean, pgd) for one in (ours, textbook)]
    ratio = None if None in times else times[1] / times[0]  # type: ignore[operator]
    return {
        "target": {"clean": clean, "pgd": pgd},
        "seconds_to_target": {"ours": times[0], "textbook": times[1]},
        "ratio": ratio,
        "images_per_second": {
            name: round(one.images / one.seconds, 1) if one.seconds else None
            for name, one in (("ours", ours), ("textbook", textbook))
        },
        "ours": asdict(ours),
        "textbook": asdict(textbook),
    }


def page(document: dict[str, Any]) -> str:
    """The summary, with its ``command``, ``network``, ``data`` and ``machine``, as a page."""
    ours, textbook = (Progress.read(document[name]) for name in ("ours", "textbook"))
    target = document["target"]
    lines = [
        "# Time to robustness",
        "",
        f"Written by the command below. {document['data']}, {document['network']}, one thread of "
        f"{document['machine']}. Ours is the recipe in {ours.epochs} epochs; the textbook has {textbook.epochs}, "
        f"of which {len(textbook.measurements)} were run. Accuracies are those of val images, clean and under PGD-20.",
        "",
        "    export OMP_NUM_THREADS=1",
        f"    {document['command']}",
        "",
        "What the textbook had after each of its epochs, and when ours had as much of both at the end of an epoch:",
        "",
        "| textbook, epochs | seconds | clean | PGD-20 | seconds of ours | times as fast |",
        "|---|---|---|---|---|---|",
    ]
    for had, seconds in pairs(ours, textbook):
        when = "not in this run | " if seconds is None else f"{seconds:,.0f} | {had.seconds / seconds:.1f}"
        lines.append(f"| {had.epoch} | {had.seconds:,.0f} | {had.clean:.1%} | {had.pgd:.1%} | {when} |")
    lines += [
        "",
        "| ours, epochs | seconds | clean | PGD-20 | the textbook needed |",
        "|---|---|---|---|---|",
    ]
    for had in ours.measurements:
        needed = textbook.reached(had.clean, had.pgd)
        longer = (
            f"more than {textbook.seconds:,.0f} s, {textbook.seconds / had.seconds:.1f} times as long"
            if needed is None
            else f"{needed:,.0f} s, {needed / had.seconds:.1f} times as long"
        )
        lines.append(f"| {had.epoch} | {had.seconds:,.0f} | {had.clean:.1%} | {had.pgd:.1%} | {longer} |")
    rates = document["images_per_second"]
    lines += [
        "",
        f"Images a second: ours {rates['ours']}, the textbook {rates['textbook']}. "
        f"The run was to end at {target['clean']:.0%} clean and {target['pgd']:.0%} under PGD-20, or with its epochs.",
        "",
    ]
    return "\n".join(lines)
