"""`--threads`, of the commands that compute for long."""

from __future__ import annotations

import click

from ducat_serve.cli.manner_options import Function


def threads_option(function: Function) -> Function:
    """Add `--threads N`. The command hands it to `choose_threads` before it imports torch."""
    return click.option(
        "--threads",
        type=click.IntRange(min=1),
        help="CPU threads, of each process.  [default: OMP_NUM_THREADS, or the CPUs that it may use]",
    )(function)
