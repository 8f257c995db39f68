"""An evaluation that is interrupted in the middle."""

from __future__ import annotations

import pytest

from ducat_serve.report import AttackResult
from training.attacks.base import Attack
from training.evaluation.attack_run import AttackRun


def stop_in(
    monkeypatch: pytest.MonkeyPatch,
    attack: str,
    *,
    eps: float | None = None,
    error: type[BaseException] = KeyboardInterrupt,
) -> None:
    """Raise ``error`` where an evaluation comes to the attack of that name, at that radius if one is given."""
    real = AttackRun._run

    def run(attack_run: AttackRun, next_attack: Attack) -> AttackResult:
        if next_attack.name == attack and eps in (None, attack_run.runner.ball.eps):
            raise error
        return real(attack_run, next_attack)

    monkeypatch.setattr(AttackRun, "_run", run)
