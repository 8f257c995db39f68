"""What the decoder needs for the largest image of each format, in a process of its own.

    python benchmarks/decode_memory.py --side 5000

Linux only: it reads the peak of the process's memory (VmHWM) after setting it back.
"""

from __future__ import annotations

import io
import multiprocessing
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from ducat_serve.images import decode, fit, to_array


def images(side: int) -> dict[str, bytes]:
    """A file of each kind, of ``side`` by ``side`` pixels."""
    random = np.random.default_rng(0)
    rgba = Image.fromarray(random.integers(0, 256, (50, 50, 4), dtype=np.uint8)).resize((side, side))
    rgb = rgba.convert("RGB")
    grey = Image.fromarray(random.integers(0, 256, (side, side), dtype=np.uint16) * 256)
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "PNG": (rgb, "PNG", {"compress_level": 1}),
        "PNG, transparency": (rgba, "PNG", {"compress_level": 1}),
        "PNG, palette and transparency": (rgb.quantize(64), "PNG", {"transparency": 0}),
        "PNG, 16-bit grey": (grey, "PNG", {}),
        "JPEG": (rgb, "JPEG", {}),
        "JPEG, progressive, 4:4:4": (rgb, "JPEG", {"progressive": True, "subsampling": 0}),
        "JPEG, CMYK": (rgb.convert("CMYK"), "JPEG", {}),
        "JPEG, to be turned": (rgb, "JPEG", {"exif": turned}),
        "WebP": (rgb, "WEBP", {"method": 0}),
        "WebP, transparency": (rgba, "WEBP", {"method": 0}),
        "WebP, lossless, transparency": (rgba, "WEBP", {"method": 0, "lossless": True, "quality": 0}),
        "BMP": (rgb, "BMP", {}),
    }
    files = {}
    for name, (image, format, options) in kinds.items():
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        files[name] = buffer.getvalue()
    return files


def measure(data: bytes, max_pixels: int) -> tuple[float, float]:
    """MiB above what the process and the file take, and CPU seconds."""
    Path("/proc/self/clear_refs").write_text("5")
    before, started = _peak(), time.process_time()
    to_array(fit(decode(data, max_pixels), (32, 32)))
    return (_peak() - before) / 1024, time.process_time() - started


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


@click.command()
@click.option("--side", default=5000, show_default=True, help="Height and width in pixels.")
def main(side: int) -> None:
    """Print a row for each format."""
    print(
        f"{side * side / 1e6:.0f} megapixels\n\n| format | file, MB | memory, MiB | bytes a pixel | CPU, s |"
    )
    print("|---|---|---|---|---|")
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name, data in images(side).items():
            memory, seconds = pool.apply(measure, (data, side * side))
            bytes_a_pixel = memory * 2**20 / side**2
            print(
                f"| {name} | {len(data) / 1e6:.1f} | {memory:.0f} | {bytes_a_pixel:.1f} | {seconds:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
