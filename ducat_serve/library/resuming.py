"""What can be gone on with after an interruption, and what is said to whom interrupts."""

from __future__ import annotations

from ducat_serve.errors import InterruptedRun, UsageError
from training.evaluation.settings import EvaluationSettings


class InterruptedEvaluation(InterruptedRun):
    """What the finished attacks found is kept. The next step is that of Python; the command names its own."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(
            signal_number,
            "interrupted; what the finished attacks found is kept.",
            "evaluate(..., resume=True) with the same arguments",
        )


def require_resumable(settings: EvaluationSettings) -> None:
    """Raise UsageError where nobody can tell whether an evaluation is the one that was interrupted."""
    if settings.has_own_attacks:
        raise UsageError(
            "resume: whether a function is the one that attacked before cannot be told.",
            "leave resume out, or name attacks of ours only",
        )


def interrupted(signal: int, settings: EvaluationSettings) -> InterruptedRun:
    """The error that says how to go on."""
    if settings.has_own_attacks:
        return InterruptedRun(
            signal, "interrupted; an evaluation by an attack of one's own is not kept.", "run it again"
        )
    return InterruptedEvaluation(signal)
