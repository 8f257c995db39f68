"""What clients are told of errors that are not raised as an APIError."""

from __future__ import annotations

import pytest

from service.errors import from_model_error
from service.models.errors import ModelError


class Forgotten(ModelError):
    """An error that nobody gave a status."""


KINDS = [kind for kind in ModelError.__subclasses__() if kind is not Forgotten]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_of_the_models_has_a_status(kind: type[ModelError]) -> None:
    error = from_model_error(kind("A sentence."))
    assert 400 <= error.status < 600
    assert error.message == "A sentence."
    assert (error.retry_after is None) == (error.status != 503)


def test_an_error_without_a_status_is_found() -> None:
    assert len(KINDS) > 3
    with pytest.raises(TypeError, match="Forgotten"):
        from_model_error(Forgotten("A sentence."))
