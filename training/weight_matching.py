"""Which tensor of a file belongs to which of a network: wrappers taken off, nothing dropped without a word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ducat_serve.errors import UsageError
from ducat_serve.pairs import widen_head
from ducat_serve.spec import Normalisation

# A layer before the network that normalises: madrylab's, RobustBench's.
_MEANS, _STDS = ("new_mean", "mean"), ("new_std", "std")
# Second heads of GoogLeNet and Inception, which our networks do not have, and what averages of weights count.
_OF_TRAINING = ("aux1.", "aux2.", "AuxLogits.")
_COUNTERS = ("num_batches_tracked", "n_averaged")
_POSITIONS = ("pos_embed", "pos_embedding", "relative_position")
_NAMED = 4  # names in a message


@dataclass(frozen=True)
class Matched:
    """Tensors as the network names them; what to say of them; the file's own normalisation.

    ``brings_head``: the head is the file's too, and no fresh one.
    """

    tensors: dict[str, Tensor]
    notes: tuple[str, ...]
    normalisation: Normalisation | None
    brings_head: bool


def match(
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    head: str,
    source: str,
    *,
    from_dummies: bool,
    to_dummies: bool,
) -> Matched:
    """Match the tensors of a file with those of a network.

    Args:
        found: of the file; all may stand behind a prefix of wrappers, such as `module.model.`.
        expected: the state_dict of the network, whose head keeps its own values where the file's does not fit.
        head: the name of the network's head.
        from_dummies, to_dummies: whether the head of the file, and that of the network, answers classes and dummies.
            Shapes do not tell: 20 outputs are 20 classes, or 10 and their dummies.

    Raises:
        UsageError: weights for another architecture: tensors that are missing, of another shape, or that the network
            has no place for; they are named.
    """
    prefix, twins = _prefixes(found, expected, source)
    body = {name: tensor for name, tensor in expected.items() if not _is_below(name, head)}
    taken = {name: found[prefix + name] for name in body if prefix + name in found}
    missing = [name for name in body if name not in taken and not name.endswith(_COUNTERS)]
    misfits = [name for name, tensor in taken.items() if tensor.shape != body[name].shape]
    heads = {name: tensor for name, tensor in expected.items() if _is_below(name, head)}
    used = {prefix + name for name in (*body, *heads)}
    normalisation, notes, superfluous = _rest(found, used, prefix, twins, expected)
    if missing or misfits or superfluous:
        raise _other_architecture(source, missing, misfits, superfluous, taken, body)
    theirs = {name: found.get(prefix + name) for name in heads}
    their_head, note = _head(theirs, heads, from_dummies, to_dummies)
    if prefix:
        notes.insert(0, f"'{prefix}' before each name was taken off")
    tensors = {
        name: tensor.to(expected[name].dtype) for name, tensor in (taken | (their_head or heads)).items()
    }
    # What torch itself fills in: files of old versions have no counters.
    return Matched({**expected, **tensors}, (*notes, note), normalisation, their_head is not None)


def _prefixes(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str
) -> tuple[str, list[str]]:
    """What stands before the network's names, and what stands before them as often elsewhere in the file."""
    counts: Counter[str] = Counter()
    for key in found:
        starts = [0, *(i + 1 for i, letter in enumerate(key) if letter == ".")]
        counts.update(key[:start] for start in starts if key[start:] in expected)
    if not counts:
        raise UsageError(
            f"{source} has weights for another architecture: none of its {len(found)} tensors is one of the network's. "
            f"It has {_names(found)}; the network has {_names(expected)}.",
            "give the --network that they belong to",
        )
    most = max(counts.values())
    best = sorted(
        (p for p, count in counts.items() if count == most), key=lambda p: ("ema" not in p, len(p), p)
    )
    return best[0], best[1:]


def _rest(
    found: Mapping[str, Tensor], used: set[str], prefix: str, twins: list[str], expected: Mapping[str, Tensor]
) -> tuple[Normalisation | None, list[str], list[str]]:
    """What the file holds beside the network's own tensors: normalisation, notes, and names that have no place."""
    means: list[Tensor] = []
    stds: list[Tensor] = []
    notes: list[str] = []
    superfluous: list[str] = []
    same: Counter[str] = Counter()
    other: Counter[str] = Counter()
    for key in (key for key in found if key not in used):
        last, tensor = key.rpartition(".")[2], found[key]
        twin = next((p for p in twins if key.startswith(p) and key.removeprefix(p) in expected), None)
        if last in (*_MEANS, *_STDS) and tensor.numel() in (1, 3):
            (means if last in _MEANS else stds).append(tensor.flatten())
        elif twin is not None:
            first = found.get(prefix + key.removeprefix(twin))
            (same if first is not None and torch.equal(first, tensor) else other)[twin] += 1
        elif last in _COUNTERS:
            notes.append(f"the counter '{key}' is left out")
        elif key.removeprefix(prefix).startswith(_OF_TRAINING):
            notes.append(f"'{key}' of a second head is left out")
        else:
            superfluous.append(key)
    for twin in twins:
        if other[twin]:
            notes.append(f"other weights under '{twin}' are left out; those under '{prefix}' are taken")
        elif same[twin]:
            notes.append(f"the same weights are there again under '{twin}'")
    normalisation = None
    if means and stds:
        mean, std = (tuple(round(float(v), 6) for v in values.expand(3)) for values in (means[0], stds[0]))
        normalisation = Normalisation(mean=mean, std=std)
        notes.append(f"images are normalised as the file says: mean {mean}, std {std}")
    return normalisation, notes, superfluous


def _head(
    found: Mapping[str, Tensor | None], expected: Mapping[str, Tensor], from_dummies: bool, to_dummies: bool
) -> tuple[dict[str, Tensor] | None, str]:
    """The file's head where it fits, with dummies where the network has them; else None. And what to say of it."""
    have = {name: tensor for name, tensor in found.items() if tensor is not None}
    outputs = next(iter(expected.values())).shape[0]
    if len(have) < len(expected):
        return None, f"they have no head: a fresh one of {outputs} outputs is trained"
    if all(have[name].shape == expected[name].shape for name in expected):
        if from_dummies != to_dummies:
            return None, (
                f"their head of {outputs} outputs is {_meaning(from_dummies, outputs)}, not "
                f"{_meaning(to_dummies, outputs)}: a fresh one is trained"
            )
        return have, (
            f"their head of {outputs} outputs is kept: right only for the same classes in the same order"
        )
    width = next(iter(have.values())).shape[0]
    names = sorted(expected)  # bias, weight
    alike = all(have[n].shape[1:] == expected[n].shape[1:] for n in names)
    adds_dummies = to_dummies and not from_dummies and outputs == 2 * width
    if alike and len(names) == 2 and adds_dummies:
        bias, weight = (have[name].float() for name in names)
        wide_weight, wide_bias = widen_head(weight, bias)
        return {names[0]: wide_bias, names[1]: wide_weight}, (
            f"their head of {width} classes is kept, with a dummy for each: right only for the same classes in the "
            "same order"
        )
    return None, f"their head has {width} outputs, not {outputs}: a fresh one is trained"


def _meaning(dummies: bool, outputs: int) -> str:
    return f"of {outputs // 2} classes and their dummies" if dummies else f"of {outputs} classes"


def _other_architecture(
    source: str,
    missing: list[str],
    misfits: list[str],
    superfluous: list[str],
    taken: Mapping[str, Tensor],
    body: Mapping[str, Tensor],
) -> UsageError:
    reasons = []
    if missing:
        reasons.append(f"{len(missing)} tensors are missing, {_names(missing)}")
    if misfits:
        first = misfits[0]
        shapes = f"'{first}' is {list(taken[first].shape)}, not {list(body[first].shape)}"
        reasons.append(f"{len(misfits)} have another shape, {shapes}")
    if superfluous:
        reasons.append(f"the network has no place for {len(superfluous)}, {_names(superfluous)}")
    if misfits and not missing and all(any(word in name for word in _POSITIONS) for name in misfits):
        return UsageError(
            f"{source} was made for images of another size: {'; '.join(reasons)}.",
            "give the --image-size that the weights were trained at",
        )
    return UsageError(
        f"{source} has weights for another architecture: {'; '.join(reasons)}.",
        "give the --network that they belong to",
    )


def _is_below(name: str, module: str) -> bool:
    return name.startswith(f"{module}.")


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(f"'{name}'" for name in listed[:_NAMED]) + (", ..." if len(listed) > _NAMED else "")
