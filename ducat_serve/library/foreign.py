"""Somebody else's model by the name of a callable: measured on a data set, its report and card written beside."""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ducat_serve import atomic
from ducat_serve.errors import InterruptedRun, UsageError
from ducat_serve.output import Output
from ducat_serve.predictor import Device
from ducat_serve.report import RobustnessReport
from ducat_serve.spec import Fold
from ducat_serve.threat_model import Norm, ThreatModel
from export.model_card import report_card
from training.batches import DeviceSplit
from training.data import load_dataset
from training.device import choose_device, exact_float32
from training.evaluation.curve import measure_curve
from training.evaluation.evaluate import measure
from training.evaluation.foreign import import_model, prepare_model
from training.evaluation.outputs import Outputs
from training.evaluation.prepare import choose_images


@dataclass(frozen=True)
class ForeignRequest:
    """What `ducat evaluate package.module:callable` was asked; its options say what each field means."""

    name: str
    dataset: str
    eps: tuple[float, ...]
    norm: Norm = "linf"
    import_from: Path | None = None
    fold: Fold = "none"
    eight_bit: bool = False
    split: Literal["val", "test"] = "test"
    suite: str = "quick"
    attacks: tuple[str, ...] = ()
    max_examples: int | None = None
    batch_size: int = 256
    seed: int = 0
    data_dir: Path | None = None
    offline: bool = False
    device: Device = "auto"


def measure_foreign(request: ForeignRequest, outputs: Outputs, output: Output) -> RobustnessReport:
    """Measure the model that a callable makes; the report is at the largest eps, with a curve where there are several.

    Raises:
        UsageError: it cannot be imported or is no classifier, the data set has another number of classes, or an eps
            of 0. InterruptedRun: Ctrl-C.
    """
    if not request.eps or 0 in request.eps:
        raise UsageError("A model of others needs --eps, above 0, in pixels of [0, 1].", "give --eps 8/255")
    device = choose_device(request.device, output)
    exact_float32()
    model = import_model(request.name, request.import_from).to(device)
    data = load_dataset(
        request.dataset,
        data_dir=request.data_dir,
        offline=request.offline,
        seed=request.seed,
        output=output,
    )
    images = data.val if request.split == "val" else data.test
    chosen, index = choose_images(images, request.max_examples, request.seed)
    subject, plan = prepare_model(
        model,
        DeviceSplit.of(chosen, device),
        ThreatModel(norm=request.norm, eps=max(request.eps)),
        suite=request.suite,
        attacks=request.attacks,
        fold=request.fold,
        class_names=data.class_names,
        dataset=data.title,
        batch_size=request.batch_size,
        seed=request.seed,
        output=output,
        split=request.split,
    )
    plan = replace(plan, eight_bit=request.eight_bit, keep_images=outputs.adversarial is not None)
    try:
        with outputs.opened(output) as write:
            found = (
                measure_curve(subject, plan, request.eps, output)
                if len(request.eps) > 1
                else measure(subject, plan, output)
            )
            write(subject, plan, found, index)
    except KeyboardInterrupt:
        raise InterruptedRun(signal.SIGINT, "interrupted; nothing was kept.", "run it again") from None
    return found.report


def write_report(name: str, report: RobustnessReport, file: Path | None, output: Output) -> Path:
    """Write report and card to ``file`` (by default the callable's name, here) and the same name with .md."""
    file = file or Path(f"{name.rpartition(':')[2]}.robustness.json")
    atomic.write_text(file, report.model_dump_json(indent=2) + "\n")
    card = file.with_suffix(".md")
    atomic.write_text(card, report_card(name, report))
    output.say(f"Report: {file}, for people: {card}")
    return file
