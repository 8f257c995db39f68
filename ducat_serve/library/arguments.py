"""Arguments that Python lets through, refused as the options of the commands refuse them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import get_args

from ducat_serve.errors import UsageError
from ducat_serve.predictor import Device
from ducat_serve.threat_model import parse_size
from training.attacks.own import AttackFunction

# Names of attacks, and functions of the user's own.
Attacks = str | AttackFunction | Sequence[str | AttackFunction] | None


def sizes(name: str, given: float | str | Sequence[float | str] | None) -> tuple[float, ...]:
    """Perturbation sizes: none, one or several. Raises UsageError for what is no size of pixels in [0, 1]."""
    if given is None:
        return ()
    several = given if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
    return tuple(_size(name, one) for one in several)


def _size(name: str, given: object) -> float:
    try:
        if isinstance(given, str):
            return parse_size(given)
    except ValueError as error:
        raise UsageError(f"{name}: {error}.", f'give {name}="8/255" or {name}=0.03') from error
    if not isinstance(given, Real) or isinstance(given, bool) or not 0 <= float(given) < math.inf:
        raise UsageError(f"{name}: {given!r} is not a size.", f'give {name}="8/255" or {name}=0.03')
    return float(given)


def require_whole(name: str, given: object, least: int, *, optional: bool = True) -> None:
    """Raise UsageError for what is no whole number from ``least`` on, nor None where the argument is ``optional``."""
    if given is None and optional:
        return
    if not isinstance(given, Integral) or isinstance(given, bool) or int(given) < least:
        raise UsageError(
            f"{name}: {given!r} is not a whole number from {least} on.", f"give {name}={least} or more"
        )


def attacks_asked_for(given: Attacks) -> tuple[str | AttackFunction, ...]:
    """The attacks that were named or given, each once; none for None, which leaves them to the suite.

    Raises UsageError for an empty list, and for what is neither a name nor a function.
    """
    several = tuple(given) if isinstance(given, list | tuple) else () if given is None else (given,)
    if given is not None and not several:
        raise UsageError(f"attacks: {given!r} names no attack.", "leave it out to run those of the suite")
    for one in several:
        if not isinstance(one, str) and not callable(one):
            raise UsageError(
                f"attacks: {one!r} is neither the name of an attack nor a function.",
                "give names, or functions of (model, images, labels, threat_model) to images",
            )
    # Functions by identity: an object that is called need not have a hash.
    return tuple({one if isinstance(one, str) else id(one): one for one in several}.values())


def require_one_of(name: str, given: object, known: Sequence[object]) -> None:
    """Raise UsageError for what is none of these."""
    if given not in known:
        raise UsageError(f"{name}: {given!r} is unknown.", f"choose one of: {', '.join(map(repr, known))}")


def require_device(device: object) -> None:
    """Raise UsageError for what is no name of a device."""
    require_one_of("device", device, get_args(Device))
