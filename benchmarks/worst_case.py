"""What all studies measure of a checkpoint: the standard suite on the deployed function, without its side studies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ducat_serve.checkpoint import read_checkpoint, write_checkpoint
from ducat_serve.output import Output
from ducat_serve.report import RobustnessReport
from training.distributed.processes import ProcessGroup
from training.evaluation.evaluate import evaluate
from training.evaluation.prepare import Request, evaluation_device, prepare
from training.evaluation.settings import EvaluationSettings

_NEEDED = {"pgd", "closest-first", "apgd-ce"}


def measured(file: Path, samples: int, data_dir: Path | None, output: Output) -> RobustnessReport:
    """The report inside ``file`` where it is that already; else evaluate, or go on with that, and store it.

    Left out is what decides nothing about the worst case: the study of flagging, and all attacks of the legacy measure
    but one.
    """
    spec, tensors = read_checkpoint(file)
    known = spec.robustness
    if known is not None and known.examples == samples and {a.name for a in known.attacks} >= _NEEDED:
        return known
    settings = EvaluationSettings(
        suite="standard", max_examples=samples, data_dir=data_dir, offline=True, device="cpu"
    )
    request = Request(file, settings)
    prepared = prepare(request, output, ProcessGroup(), evaluation_device(request, output))
    plan = replace(prepared.plan, val=None, legacy_attacks=prepared.plan.legacy_attacks[:1])
    state = prepared.state(plan)
    report = evaluate(prepared.subject, plan, output, state)
    write_checkpoint(file, tensors, spec.model_copy(update={"robustness": report}))
    state.remove()
    return report
