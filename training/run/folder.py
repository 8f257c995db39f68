"""The files of a run: config.json, last.pt, metrics.csv, tensorboard/, curves.png and its checkpoints.

`model.safetensors` is the best on val, `last.safetensors` the newest epoch, `pre_dummy.safetensors` the last
one before the dummy phase.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ducat_serve import atomic
from ducat_serve.errors import DataError, DucatError, UsageError, command_line
from ducat_serve.networks.allowed import options_for
from ducat_serve.spec import first_problem
from training.run.metrics import COLUMNS, EpochRow
from training.run.presence import CAN_LOOK, is_marked, marked
from training.run.recorded import RecordedRun

if TYPE_CHECKING:  # torch and fsspec, which a list of runs does without
    from training.config import TrainConfig
    from training.provenance import Provenance

_LOCK = ".lock"


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def last(self) -> Path:
        return self.path / "last.safetensors"

    @property
    def pre_dummy(self) -> Path:
        return self.path / "pre_dummy.safetensors"

    @classmethod
    def of(cls, config: TrainConfig, out: Path | None) -> RunFolder:
        """Where a run goes: ``out``, and unless the user says that, runs/DATASET-NETWORK[-METHOD]-DUCAT."""
        if out is not None:
            return cls(out)
        method = "" if config.method == "pgd-at" else f"-{config.method}"
        dataset = Path(config.dataset.removeprefix("folder:")).name
        network = config.network.replace(":", "-")  # a colon has a meaning of its own in many paths
        return cls(Path("runs") / f"{dataset}-{network}{method}-{config.ducat}")

    def of_epoch(self, epoch: int) -> Path:
        """What --save-every keeps."""
        return self.path / f"epoch-{epoch:03d}.safetensors"

    def models_of(self, epoch: int, config: TrainConfig, *, is_best: bool) -> list[Path]:
        """Where the weights of a finished epoch are written; `last` comes last."""
        paths = [self.model] if is_best else []
        if epoch + 1 == config.ducat_start:
            paths.append(self.pre_dummy)
        if config.save_every and epoch % config.save_every == 0:
            paths.append(self.of_epoch(epoch))
        return [*paths, self.last]

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def state(self) -> Path:
        return self.path / "last.pt"

    @property
    def curves(self) -> Path:
        return self.path / "curves.png"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; it is free again when this process ends, however it does.

        Raises:
            UsageError: another process trains here. DucatError: the folder cannot be written to.
        """
        from filelock import FileLock, Timeout

        with contextlib.ExitStack() as held:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(self.path / _LOCK, blocking=False))
                held.enter_context(marked(self._training))
            except Timeout as error:
                raise UsageError(
                    f"Another process is training in {self.path}.",
                    "wait for it, stop it, or choose another --out",
                ) from error
            except OSError as error:
                raise DucatError(
                    f"Cannot write to the run folder {self.path}: {error.strerror}.", "choose another --out"
                ) from error
            yield

    def is_locked(self) -> bool:
        """Whether a process trains here now.

        On Linux nothing is written and no start fails because somebody looks. Elsewhere the lock is tried for, and a
        start at that very moment is told that another process trains here. Raises DucatError where neither can be done.
        """
        if CAN_LOOK:
            try:
                return is_marked(self._training)
            except OSError as error:
                raise DucatError(f"Cannot look into {self.path}: {error.strerror}.") from error
        try:
            with self.locked():
                return False
        except UsageError:
            return True

    @property
    def _training(self) -> Path:
        # Not the lock file itself: on NFS both kinds of locks are one, and would be in each other's way.
        return self.path / ".training"

    def read_metrics(self) -> list[EpochRow]:
        """The rows of metrics.csv; none where no epoch was finished. Raises DataError where it is damaged."""
        if not self.metrics.is_file():
            return []
        try:
            with self.metrics.open(newline="") as file:
                return [EpochRow.read(cells) for cells in csv.DictReader(file)]
        except (csv.Error, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{self.metrics} is damaged: {error}.") from error

    def require_free(self, config: TrainConfig) -> None:
        """Raise UsageError where a new run would write over another one, or over a model that is no run's."""
        if self.config.exists():
            resume = command_line("ducat", "train", "--resume", self.path, *options_for(config.network))
            raise UsageError(f"{self.path} already holds a run.", f"{resume}, or choose another --out")
        for file in (self.model, self.last, self.pre_dummy, self.state):
            if file.exists():
                raise UsageError(f"{file} is there already, and would be replaced.", "choose another --out")

    def create(
        self, config: TrainConfig, data_dir: Path | None, data_digest: str, provenance: Provenance
    ) -> None:
        """Start a new run here. Raises UsageError as `require_free` does."""
        self.require_free(config)
        # The data folder is where this machine keeps its data, not a part of what decides the weights.
        document = {
            "config": config.model_dump(mode="json"),
            "data_dir": str(data_dir) if data_dir else None,
            "data_digest": data_digest,
            **provenance.document(),
        }
        self._write_config(document)

    def _write_config(self, document: dict[str, Any]) -> None:
        atomic.write_text(self.config, json.dumps(document, indent=2, sort_keys=True) + "\n")

    def read(self) -> tuple[TrainConfig, Path | None]:
        """The configuration and data folder of the run here. Raises DataError where there is none."""
        from training.config import TrainConfig

        with self._reading() as document:
            config = TrainConfig.model_validate(document["config"])
            data_dir = Path(document["data_dir"]) if document.get("data_dir") else None
        return config, data_dir

    def read_recorded(self) -> RecordedRun:
        """What a list shows of the run here. Raises DataError where there is none."""
        with self._reading() as document:
            return RecordedRun.model_validate(document["config"])

    @contextlib.contextmanager
    def _reading(self) -> Iterator[dict[str, Any]]:
        try:
            yield json.loads(self.config.read_text())
        except OSError as error:
            if (self.path / _LOCK).exists():
                raise DataError(
                    f"The run in {self.path} was stopped before its settings were saved.",
                    "start it again by the command that began it",
                ) from error
            raise DataError(
                f"There is no run in {self.path}.", "ducat train --dataset digits --ducat off --out runs/NAME"
            ) from error
        except ValidationError as error:
            raise DataError(f"{self.config} is damaged: {first_problem(error)}.") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{self.config} is damaged: {error}.") from error

    def read_provenance(self) -> Provenance:
        """Of the run whose configuration `read` has read; unknown in runs of older versions."""
        from training.provenance import Provenance, Resumption

        with self._reading() as document:
            return Provenance(
                document.get("command"),
                document.get("git_revision"),
                document.get("versions"),
                tuple(Resumption(**resumption) for resumption in document.get("resumed", ())),
            )

    def write_provenance(self, provenance: Provenance) -> None:
        """Replace that of the run here. Raises DucatError where it cannot be written."""
        with self._reading() as document:
            kept = {name: value for name, value in document.items() if name != "resumed"}
            changed = {**kept, **provenance.document()}
        self._write_config(changed)

    def require_data(self, digest: str) -> None:
        """Raise DataError where ``digest`` is not that of the data which the run began with."""
        stored = json.loads(self.config.read_text()).get("data_digest")
        if stored != digest:
            raise DataError(
                f"The run in {self.path} began with other data (digest {str(stored)[:12]}, now {digest[:12]}).",
                "give the --data-dir that it began with",
            )

    def write_metrics(self, rows: Sequence[EpochRow]) -> None:
        """Write metrics.csv anew, one row per finished epoch."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.cells() for row in rows)
        atomic.write_text(self.metrics, buffer.getvalue())
