"""What an evaluation was asked: all that decides its result, so that `--resume` goes on with no other one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ducat_serve import __version__
from training.evaluation.evaluate import Plan, Subject
from training.evaluation.state import EvaluationState


def state_beside(
    file: Path,
    subject: Subject,
    plan: Plan,
    *,
    sizes: Sequence[float],
    function: str,
    surrogate: str | None,
) -> EvaluationState:
    """Where the evaluation whose report goes to ``file`` is kept while it runs.

    Args:
        sizes: further eps to measure at.
        function: a digest of, or words for, what turns raw logits into answers; of a model of others also its answers.
        surrogate: a digest of the model that images are made on, if any.
    """
    return EvaluationState.beside(
        file,
        {
            "version": __version__,
            "weights": subject.weights_digest,
            "function": function,
            "artefact": f"{subject.artefact} {subject.precision}",
            "surrogate": surrogate,
            "batch size": plan.batch_size,
            "data": f"{subject.dataset} {subject.split} {subject.data_digest}",
            "threat model": str(plan.threat_model),
            "lattice": "8bit" if plan.eight_bit else "",
            "attacks": [[attack.name, attack.settings()] for attack in (*plan.attacks, *plan.on_doubt)],
            "seed": plan.seed,
            "kept images": plan.keep_images,
            "radii": sorted({*sizes, plan.threat_model.eps}),
        },
    )
