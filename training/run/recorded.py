"""What config.json says of a run, as far as a list of runs shows it. Loads no torch, as `TrainConfig` has to."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from training.objectives import is_adversarial


class RecordedRun(BaseModel):
    """Settings of a run that was started; defaults are those of older versions, which did not record them."""

    model_config = ConfigDict(frozen=True)

    method: str = "pgd-at"
    ducat: str = "paper"
    ducat_start: int | None = None
    epochs: int = Field(ge=1)

    @property
    def is_adversarial(self) -> bool:
        """Whether the method trains on adversarial images."""
        return is_adversarial(self.method)
