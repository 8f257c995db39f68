"""`last.pt` in every state of damage: one error with exit code 4, nothing executed, no traceback."""

from __future__ import annotations

import io
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ducat_serve.errors import DataError
from tests.support.training_runs import trainer
from training.run.state import RunState, load_state, save_state

Change = Callable[[str, bytes], bytes | None]


@pytest.fixture
def state() -> RunState:
    """Of one step of a network of two tensors."""
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return RunState(weights=network.state_dict(), optimizer=optimizer.state_dict(), losses=[1.0])


@pytest.fixture
def path(state: RunState, tmp_path: Path) -> Path:
    save_state(tmp_path / "last.pt", state)
    return tmp_path / "last.pt"


def refused(path: Path, data: bytes) -> DataError:
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"last\.pt is damaged") as caught:
        load_state(path)
    assert caught.value.exit_code == 4
    assert "another folder" in str(caught.value.next_step)
    return caught.value


def packed_again(data: bytes, change: Change) -> bytes:
    """The same archive, its checksums right again, with members changed or left out."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            if (content := change(name, source.read(name))) is not None:
                archive.writestr(name, content)
    return target.getvalue()


def test_cut_anywhere(path: Path) -> None:
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        refused(path, data[:length])
    refused(path, data[:-1])


def test_a_whole_archive_with_a_cut_pickle(path: Path) -> None:
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        length = len(archive.read("archive/data.pkl"))
    for cut in range(0, length, 3):

        def shortened(name: str, content: bytes, cut: int = cut) -> bytes:
            return content[:cut] if name.endswith("data.pkl") else content

        refused(path, packed_again(data, shortened))


def test_an_archive_without_one_of_its_parts(path: Path) -> None:
    data = path.read_bytes()
    for missing in ("data.pkl", "data/0", "version"):
        refused(path, packed_again(data, lambda name, c, m=missing: None if name.endswith(m) else c))  # type: ignore[misc]


def test_a_flipped_bit_of_the_weights(path: Path, state: RunState) -> None:
    """torch.load itself does not look at the archive's checksums."""
    data = bytearray(path.read_bytes())
    data[data.index(state.weights["weight"].numpy().tobytes())] ^= 1
    refused(path, bytes(data))


def test_random_bytes_in_the_pickle(path: Path) -> None:
    """Whatever they mean, they are a state or an error of ours."""
    data, dice = path.read_bytes(), random.Random(0)
    for _ in range(300):

        def dotted(name: str, content: bytes) -> bytes:
            if not name.endswith("data.pkl"):
                return content
            changed = bytearray(content)
            changed[dice.randrange(len(changed))] = dice.randrange(256)
            return bytes(changed)

        path.write_bytes(packed_again(data, dotted))
        try:
            load_state(path)
        except DataError:
            continue


def test_a_pickle_is_never_loaded(path: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return (Path.touch, (tmp_path / "exploded",))

    refused(path, pickle.dumps(Bomb()))
    bomb = pickle.dumps(Bomb(), protocol=2)
    whole = path.parent / "whole.pt"
    save_state(whole, RunState())
    refused(path, packed_again(whole.read_bytes(), lambda n, c: bomb if n.endswith("data.pkl") else c))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": "1"},
        {"epoch": 0},
        {"step": -1},
        {"step": 1.5},
        {"weights": [1]},
        {"weights": {"weight": 3}},
        {"weights": {1: torch.zeros(2)}},
        {"optimizer": None},
        {"average": {"weight": "x"}},
        {"fell_back": "no"},
        {"losses": "abc"},
        {"losses": ["abc"]},
        {"seconds": None},
        {"rows": 3},
        {"rows": [{}]},
        {"more": 1},
    ],
    ids=str,
)
def test_other_types_inside(changes: dict[str, Any], path: Path) -> None:
    torch.save({**torch.load(path, weights_only=True), **changes}, path)
    refused(path, path.read_bytes())


@pytest.mark.parametrize("content", [None, 3, "text", [1], torch.zeros(2)], ids=str)
def test_something_else_altogether(content: object, path: Path) -> None:
    torch.save(content, path)
    refused(path, path.read_bytes())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.weights.update({"conv1.weight": s.weights["conv1.weight"].double()}), "conv1.weight"),
        (lambda s: s.weights.update({"fc.bias": s.weights["fc.bias"].bfloat16()}), "fc.bias"),
        (lambda s: s.weights.update({"bn1.num_batches_tracked": torch.tensor(1.0)}), "num_batches_tracked"),
        (lambda s: s.weights.update({"fc.bias": s.weights["fc.bias"][:3]}), "fc.bias"),
        (lambda s: s.weights.pop("fc.bias"), "fc.bias"),
        (lambda s: s.average.popitem(), "average"),
        (lambda s: s.average.update({k: v.double() for k, v in s.average.items()}), "average"),
        (lambda s: s.optimizer.clear(), "state"),
        (lambda s: s.optimizer.update(param_groups=3), "does not fit"),
        (lambda s: s.optimizer.update(param_groups=[3]), "does not fit"),
        (lambda s: s.optimizer["state"].update({0: {"momentum_buffer": torch.zeros(5)}}), "momentum"),
        (lambda s: s.optimizer["state"].update({0: 3}), "does not fit"),
        (lambda s: s.optimizer.update(state=[3]), "does not fit"),
    ],
)
def test_a_state_of_another_network_is_not_converted(
    change: Callable[[RunState], object], words: str, tmp_path: Path
) -> None:
    """load_state_dict copies float64 and whole numbers into float32 weights without a word."""
    subject = trainer(tmp_path, ema_decay=0.9)
    assert subject.average is not None
    stored = RunState(
        weights=subject.classifier.network.state_dict(),
        optimizer=subject.step.optimizer.state_dict(),
        average=subject.average.state_dict(),
    )
    save_state(subject.folder.state, stored)
    subject.resume()
    change(stored)
    save_state(subject.folder.state, stored)
    with pytest.raises(DataError, match=r"last\.pt does not fit this run") as caught:
        subject.resume()
    assert words in caught.value.cause
    assert caught.value.exit_code == 4
