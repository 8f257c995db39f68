"""How an int8 file was made from its checkpoint, as its ModelSpec records it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from ducat_serve.report import RobustnessReport


class Quantisation(BaseModel):
    """Activations of 8 bits, weights of 7 with a scale for each channel; head, fold and preprocessing in float32.

    Args:
        calibration_images: how many train images fixed the ranges of the activations, the attacked ones among them.
        attacked_images: how many of them were attacked before.
        calibration_digest: SHA-256 of their pixels, uint8 [N, H, W, channels].
        seed: what chose and attacked them.
        reduced_range: whether weights take 7 bits, so that no sum of two products overflows 16 bits. CPUs without
            an int8 dot product add in 16 bits. False only in files of versions that exported on a CPU with one.
        pixels, raw_logits: names of tensors in the graph: the images [N, channels, H, W] in [0, 1], and what the heads
            answer before the fold. There are two heads in a two-tower model, the standard tower's first.
        float32_robustness: what was measured on the checkpoint: for comparison, and never the report of this file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    calibration_images: int = Field(gt=0)
    attacked_images: int = Field(ge=0)
    calibration_digest: str
    seed: int
    reduced_range: bool
    pixels: str
    raw_logits: tuple[str, ...] = Field(min_length=1, max_length=2)
    float32_robustness: RobustnessReport | None = None
