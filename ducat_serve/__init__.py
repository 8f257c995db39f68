"""Adversarially robust image classifiers that can be deployed (DUCAT, arXiv 2410.12671).

`train`, `import_model`, `mix`, `evaluate` and `export` do what the commands do; `train_config` makes the settings of a
run, `resume` goes on with one. `evaluate` also measures a torch module of others, as `evaluate_model` does. `load`
gives the deployed function as a torch module; `Predictor` runs an exported model without torch; `Client` and
`AsyncClient` ask a server. Nothing is imported before it is used.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ducat_serve.client import AsyncClient, Client
    from ducat_serve.deployed import load
    from ducat_serve.errors import DucatError
    from ducat_serve.library.evaluate import evaluate
    from ducat_serve.library.exporting import export
    from ducat_serve.library.importing import import_model
    from ducat_serve.library.mixing import Towers, mix
    from ducat_serve.library.module_evaluation import evaluate_model
    from ducat_serve.library.training import resume, train, train_config
    from ducat_serve.output import Output
    from ducat_serve.prediction import Prediction
    from ducat_serve.predictor import Predictor
    from ducat_serve.report import RobustnessReport
    from ducat_serve.threat_model import ThreatModel

__version__ = "0.1.0"
__all__ = [
    "AsyncClient",
    "Client",
    "DucatError",
    "Output",
    "Prediction",
    "Predictor",
    "RobustnessReport",
    "ThreatModel",
    "Towers",
    "__version__",
    "evaluate",
    "evaluate_model",
    "export",
    "import_model",
    "load",
    "mix",
    "resume",
    "train",
    "train_config",
]

# Lazy, so that the command line and the server do not import what they do not use.
_MODULES = {
    "AsyncClient": "client",
    "Client": "client",
    "DucatError": "errors",
    "Output": "output",
    "Prediction": "prediction",
    "Predictor": "predictor",
    "RobustnessReport": "report",
    "ThreatModel": "threat_model",
    "Towers": "library.mixing",
    "evaluate": "library.evaluate",
    "evaluate_model": "library.module_evaluation",
    "export": "library.exporting",
    "import_model": "library.importing",
    "load": "deployed",
    "mix": "library.mixing",
    "resume": "library.training",
    "train": "library.training",
    "train_config": "library.training",
}
_OURS = ("training", "export", "service")
_WITH_TORCH = [name for name, module in _MODULES.items() if module.startswith(("library.", "deployed"))]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _WITH_TORCH and "torch" not in sys.modules:
        from ducat_serve.threads import prepare_threads

        prepare_threads()  # threads that wait by spinning make training several times slower beside other work
    try:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        from ducat_serve.errors import EXTRAS, missing_extra

        package = (error.name or "").split(".")[0]
        if package in _OURS and (other := getattr(sys.modules.get(package), "__file__", None)):
            raise ImportError(
                f"{other} hides the package '{package}' that comes with ducat-serve. Rename it, or work in another "
                "folder."
            ) from error
        if package not in EXTRAS:
            raise
        raise missing_extra(package, EXTRAS[package]) from error


def __dir__() -> list[str]:
    return __all__
