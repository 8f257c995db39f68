"""Settings of the service, read from `DUCAT_SERVE_*` environment variables (`ducat serve` sets them)."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ducat_serve.bundled import model_path
from ducat_serve.errors import UsageError, near_name
from ducat_serve.spec import first_problem

PREFIX = "DUCAT_SERVE_"
# Shorter keys can be guessed. Others hold what a header does not carry as it is, such as a blank at an end.
KEY = re.compile(r"[!-~]{16,}")
KEY_IN_WORDS = "at least 16 characters, all from ! to ~ in ASCII (no blanks)"
MAX_TOP_K = 100  # classes of one prediction; the answer to a hundred images would take seconds with thousands
# What Kubernetes sets for a Service named ducat-serve, or one whose name begins so.
_OF_KUBERNETES = re.compile(
    PREFIX + r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
# Options of `ducat serve` that are no settings of the service by that name.
_OF_THE_COMMAND = ("PORT", "AUTO", "JSON", "CONFIG", "QUIET", "VERBOSE", "CORS_ORIGIN")


class Settings(BaseModel):
    """Every bound of the service that can be set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Path
    require_signature: Path | None = None  # a public key (PEM); only what its owner signed is loaded
    name: str | None = None  # of the only model; None: of its file
    host: str | None = None  # the address that the server is bound to; None where it is not known
    allowed_hosts: str | None = None  # names for a request's Host header, separated by commas; "*" for any
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # CPU threads of one inference; None: all cores, or the CPU quota
    threads: int | None = Field(default=None, ge=1)
    decoders: int = Field(default=2, ge=1, le=64)  # images decoded at a time, each in a process of its own
    max_batch: int = Field(default=32, ge=1, le=1024)  # rows
    max_queue: int = Field(default=512, ge=1)  # rows waiting or running
    # seconds for a prediction, from its first byte on
    deadline: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    # seconds that a connection is kept between two requests
    keep_alive: float = Field(default=75.0, gt=0, allow_inf_nan=False)
    # seconds of service after SIGTERM, not ready
    drain: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    max_body: int = Field(default=16 * 2**20, ge=1024)  # bytes
    max_images: int = Field(default=100, ge=1)  # per request
    max_pixels: int = Field(default=25_000_000, ge=64)  # per image, before resizing
    top_k: int = Field(default=5, ge=1, le=MAX_TOP_K)
    keys_file: Path | None = None  # API keys, a NAME:KEY per line
    api_keys: str | None = Field(default=None, repr=False)  # the same, separated by commas
    samples: Path | None = None  # a folder of images that the page offers
    admin_key: str | None = Field(default=None, repr=False)  # guards /metrics
    access_log: bool = False  # a line for every request; those of 400 and above always have one
    rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)  # images per second and key
    daily_budget: int | None = Field(default=None, ge=1)  # images per day (UTC) and key
    audit_log: Path | None = None  # a line of JSON for every prediction
    attack_demo: bool = False  # whether clients may have the server attack its own model
    cors_origins: str | None = None  # origins whose pages may ask, separated by commas

    @field_validator("admin_key")
    @classmethod
    def _can_be_sent(cls, key: str | None) -> str | None:
        if key is not None and not KEY.fullmatch(key):
            raise ValueError(f"a key has {KEY_IN_WORDS}")
        return key

    @model_validator(mode="after")
    def _every_request_can_be_served(self) -> Self:
        if self.max_queue < self.max_images:
            raise ValueError(
                f"max_queue {self.max_queue} is less than the {self.max_images} images of one request"
            )
        return self

    @property
    def has_keys(self) -> bool:
        """Whether clients need an API key."""
        return self.keys_file is not None or self.api_keys is not None

    @property
    def max_bodies(self) -> int:
        """Bytes of all bodies that are being read or predicted: eight of the largest."""
        return 8 * self.max_body

    @property
    def burst(self) -> int:
        """Images at once: a second's worth, and one largest request at least."""
        return max(self.max_images, math.ceil(self.rate or 0))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the settings; DUCAT_SERVE_MODEL may be the name of a bundled model.

        Raises:
            UsageError: a setting is missing, empty or out of range.
            DataError: the model is a name, and nothing here or in the package is called so.
        """
        names = {name: PREFIX + name.upper() for name in cls.model_fields}
        values: dict[str, str | Path] = {
            name: environment[variable] for name, variable in names.items() if variable in environment
        }
        for name, value in values.items():
            if not str(value).strip():  # such as a secret that was not filled in: it must not mean "no key"
                raise UsageError(
                    f"{names[name]} is set but empty.", f"give it a value, or unset {names[name]}"
                )
        _refuse_unknown(environment, set(names.values()))
        if "model" in values:
            values["model"] = model_path(values["model"], "onnx")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UsageError(
                f"Invalid service setting: {first_problem(error)}.", "ducat serve --help"
            ) from error


def _refuse_unknown(environment: Mapping[str, str], known: set[str]) -> None:
    """DUCAT_SERVE_KEYS must not mean "no keys"; nor may any other name that was meant for a setting."""
    known = known | {PREFIX + name for name in _OF_THE_COMMAND}
    for variable in sorted(environment):
        if not variable.startswith(PREFIX) or variable in known or _OF_KUBERNETES.fullmatch(variable):
            continue
        near = near_name(variable, known)
        raise UsageError(
            f"{variable} is no setting." + (f" Did you mean {near}?" if near else ""),
            f"correct or unset {variable}; `ducat serve --help` has them all",
        )
