"""What a shell offers for values that no fixed list holds."""

from __future__ import annotations

from collections.abc import Iterable

import click


def complete_networks(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of networks."""
    from ducat_serve.networks import NETWORKS

    return _starting(NETWORKS, incomplete)


def complete_recipes(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of recipes."""
    from training.recipes import recipe_names

    return _starting(recipe_names(), incomplete)


def complete_datasets(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of data sets, and the start of what stands for one's own."""
    try:
        from training.data import DATASETS
    except ImportError:  # without the extra train
        return []
    return _starting([*DATASETS, "folder:"], incomplete)


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
