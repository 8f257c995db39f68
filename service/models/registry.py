"""The served models: loading, swapping and finding them. Requests are let in by service/api/admission.py."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping

from ducat_serve.errors import DataError
from ducat_serve.predictor import Predictions, is_built_for_cuda
from service.models.batcher import Batcher, Images, Infer, stalls_after
from service.models.errors import ModelRefused, ModelRequired, NotReady, Stalled, Stopping, UnknownModel
from service.models.repository import Repository
from service.models.served import LoadedVersion, Verified, load
from service.models.verification import LOAD_SECONDS, in_daemon_thread, verify_apart
from service.settings import Settings
from service.telemetry.metrics import Metrics, ModelInfo
from service.telemetry.predictions import Answers, Expected
from service.telemetry.tracing import Tracing

log = logging.getLogger("ducat_serve.service")
log.setLevel(logging.INFO)
_SHOWN_DIGITS = 12  # of a digest, in logs and labels


class _TooLate(Exception):
    """A step of loading took longer than it may."""


class Models:
    """What is served, by name and version; every version is replaced as a whole, at once."""

    def __init__(self, settings: Settings, tracing: Tracing | None = None) -> None:
        self.settings, self.tracing = settings, tracing
        self.repository = Repository(settings.model, settings.name)
        self.is_loaded = False  # whether all models that were there at the start are
        self.is_draining = False  # SIGTERM came: requests are still answered, but others should go elsewhere
        self.metrics = Metrics(lambda: sum(one.batcher.rows for one in self.all()))
        self._served: dict[str, dict[str, LoadedVersion]] = {}
        self._loading = asyncio.Lock()
        self._draining_versions: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Load and warm up off the event loop, so that /livez answers meanwhile. Raises where one is refused.

        Who asks for a reload meanwhile waits, so that nothing older takes the place of what that reload reads.
        """
        async with self._loading:
            for name in await in_daemon_thread(self.repository.find):
                await self._load(name)
            self.is_loaded = True
            self.metrics.reloaded(True)

    async def load(self, name: str) -> list[LoadedVersion]:
        """Read every version of a model again and swap all of them in once they are verified and warm.

        No request fails for it. Versions that are no longer on disk go. Returns what is served now.
        Raises ModelRefused where one is not sound; then everything stays as it was. UnknownModel for a new name.
        """
        async with self._loading:
            try:
                await self._load(name)
            except UnknownModel:
                raise
            except _TooLate as error:
                stays = self._what_stays(name)
                log.error("Model %s was not loaded within %g s%s", name, LOAD_SECONDS, stays)
                message = f"Model '{name}' was not loaded within {LOAD_SECONDS:g} s{stays}."
                raise ModelRefused(message) from error
            except Exception as error:
                stays = self._what_stays(name)
                log.error("Model %s was refused%s: %s", name, stays, error)
                message = f"Model '{name}' was refused{stays}; the cause is in the server's log."
                raise ModelRefused(message) from error
            return list(self._served[name].values())

    async def reload(self) -> list[LoadedVersion]:
        """`load` everything that is served or on disk.

        Raises ModelRefused where any is not sound; the others are swapped all the same.
        """
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                on_disk = set(await in_daemon_thread(self.repository.find))
            could_look = True
        except Exception as error:
            log.error("The models on disk cannot be read, and what is served stays: %s", error)
            could_look, on_disk = False, set()
        refused = []
        for name in sorted(on_disk | set(self._served)):
            try:
                await self.load(name)
            except (ModelRefused, UnknownModel):
                refused.append(name)
        self.metrics.reloaded(could_look and not refused)
        if refused:
            message = (
                f"Refused: {', '.join(refused)}. What was served stays; the cause is in the server's log."
            )
            raise ModelRefused(message)
        return self.all()

    def _what_stays(self, name: str) -> str:
        """For messages: a new model that is refused replaces none."""
        return " and the old one stays" if name in self._served else ""

    async def unload(self, name: str) -> None:
        """Serve a model no longer; requests that came to it finish. Raises UnknownModel."""
        async with self._loading:
            self.versions(name)
            self._swap(name, {})
            log.info("Model %s is served no longer", name)

    def serve(self, name: str, verified: Mapping[str, Verified]) -> None:
        """From now on requests for ``name`` go to these versions."""
        settings = self.settings
        versions = {}
        for version, model in verified.items():
            predictor = model.predictor
            answers = self.metrics.answers.of(name, version, predictor.spec.labels)
            batcher = Batcher(
                _counted(model.infer, answers),
                max_batch=settings.max_batch,
                max_queue=settings.max_queue,
                seconds_per_batch=model.seconds_per_batch,
                stalls_after=stalls_after(settings.deadline, model.seconds_per_batch),
                observe=self.metrics.batch,
                trace=self.tracing.batched if self.tracing else None,
            )
            versions[version] = LoadedVersion(name, version, predictor, batcher)
            info = _info(versions[version])
            log.info(
                "Model %s, version %s (weights %s, function %s, %s) is ready on %s",
                *(info.model, info.version, info.digest, info.function, info.precision, info.provider),
            )
            if predictor.fallback_reason:
                # Who installed what runs on the CPU alone meant it.
                level = logging.WARNING if is_built_for_cuda() else logging.INFO
                log.log(level, "Serving on the CPU: %s", predictor.fallback_reason)
        self._swap(name, versions)

    async def _load(self, name: str) -> None:
        """Raises _TooLate where a step of it, such as one version, takes longer than `LOAD_SECONDS`."""
        async with self._bounded():
            files = await in_daemon_thread(self.repository.find)
        if name not in files:
            if name not in self._served:
                raise UnknownModel(f"There is no model '{name}' on disk.")
            raise DataError(f"'{name}' is not on disk.")
        verified = {}
        for version, file in files[name].items():
            if self.is_loaded:  # while others are served, nothing that a file holds may harm this process
                async with self._bounded():
                    await verify_apart(file, self.settings)
            async with self._bounded():
                verified[version] = await in_daemon_thread(load, file, self.settings)
        self.serve(name, verified)

    @contextlib.asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        """No bound on the first models, which nobody else waits for; later none may keep others from being loaded."""
        bound = asyncio.timeout(LOAD_SECONDS if self.is_loaded else None)
        try:
            async with bound:
                yield
        except TimeoutError as error:
            if bound.expired():  # else it is of a file system that did not answer
                raise _TooLate from error
            raise

    def _swap(self, name: str, versions: dict[str, LoadedVersion]) -> None:
        for old in self._served.pop(name, {}).values():
            draining = asyncio.create_task(old.drain())
            self._draining_versions.add(draining)
            draining.add_done_callback(self._draining_versions.discard)
        if versions:
            self._served[name] = versions
        self.metrics.answers.expect(
            Expected(one.name, one.version, one.predictor.spec.labels, one.predictor.reference)
            for one in self.all()
            if one.predictor.reference is not None
        )
        self.metrics.serving(_info(one) for one in self.all())

    async def stop(self) -> None:
        """Answer what is queued; an inference that stalls is left behind."""
        await asyncio.gather(*(one.batcher.close() for one in self.all()), *self._draining_versions)
        if not self.is_live:
            log.error(
                "The process ends without the inference that does not end, with an exit code other than 0"
            )
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.stop)

    def all(self) -> list[LoadedVersion]:
        """Every version of every model, sorted."""
        return [
            self._served[name][version]
            for name in sorted(self._served)
            for version in sorted(self._served[name], key=int)
        ]

    def versions(self, name: str) -> list[str]:
        """What is served of a model, the newest last. Raises UnknownModel where that is nothing."""
        self.require_loaded()
        if name not in self._served:
            raise UnknownModel(f"There is no model '{name}' here.")
        return sorted(self._served[name], key=int)

    def get(self, name: str | None = None, version: str | None = None) -> LoadedVersion:
        """One model: the only one unless named, its newest version unless given.

        Raises NotReady before all are loaded, UnknownModel, or ModelRequired where there are several and none is named.
        """
        self.require_loaded()
        if name is None:
            if not self._served:
                raise UnknownModel("No model is served.")
            if len(self._served) > 1:
                raise ModelRequired(f"Name a model: {', '.join(sorted(self._served))}.")
            name = next(iter(self._served))
        versions = self.versions(name)
        if version is None:
            version = versions[-1]
        if version not in versions:
            message = f"There is no version '{version}' of model '{name}' here."
            raise UnknownModel(message)
        return self._served[name][version]

    @property
    def is_ready(self) -> bool:
        """Whether requests should come here."""
        return self.is_loaded and bool(self._served) and not self.is_draining and self.is_live

    @property
    def is_live(self) -> bool:
        """Whether this process can go on: no inference stalls."""
        try:
            self.require_live()
        except Stalled:
            return False
        return True

    def require_live(self) -> None:
        """Raises Stalled where an inference of any model will hardly end any more."""
        for one in self.all():
            one.require_running()

    def require_ready(self) -> None:
        """Raises NotReady before all models are loaded and where none is served, Stopping while the server drains.

        And Stalled as `require_live` does.
        """
        self.require_loaded()
        if not self._served:
            raise NotReady("No model is served.")
        if self.is_draining:
            raise Stopping("The server is stopping.")
        self.require_live()

    def require_loaded(self) -> None:
        """Raises NotReady before all models are loaded."""
        if not self.is_loaded:
            raise NotReady("The model is still loading.")


def _info(loaded: LoadedVersion) -> ModelInfo:
    spec = loaded.predictor.spec
    return ModelInfo(
        model=loaded.name,
        version=loaded.version,
        digest=spec.weights_digest[:_SHOWN_DIGITS],
        provider=loaded.predictor.provider,
        function=loaded.function_digest[:_SHOWN_DIGITS],
        precision=spec.precision,
    )


def _counted(infer: Infer, answers: Answers) -> Infer:
    """The same inference, whose answers are counted."""

    def inferred(images: Images) -> Predictions:
        predictions = infer(images)
        answers.count(predictions)
        return predictions

    return inferred
