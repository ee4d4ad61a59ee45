"""Where the examples put their pictures, and colours that readers with any colour vision can tell apart."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files alone, on machines without a screen too

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
RESULTS, FIGURES = HERE.parent / "results", HERE / "figures"

# Okabe and Ito's palette
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#7F7F7F"


def folder() -> Path:
    """``results``, or with ``--save`` on the command line ``examples/figures``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--save", action="store_true", help="write the picture to examples/figures, not to results")
    return FIGURES if parser.parse_args().save else RESULTS


def save(figure: Figure, to: Path, name: str) -> None:
    """Write a figure as ``name.png``, and say where."""
    to.mkdir(parents=True, exist_ok=True)
    figure.savefig(to / f"{name}.png", dpi=110)
    plt.close(figure)
    print(f"\nThe picture is in {to / f'{name}.png'}")


def bars(groups: dict[str, dict[str, float]], what: str, to: Path, name: str) -> None:
    """A number for each method in each group, as bars side by side."""
    methods = list(next(iter(groups.values())))
    figure, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
    for i, (method, colour) in enumerate(zip(methods, (ORANGE, BLUE, GREEN), strict=False)):
        places = [g + 0.4 * (i - (len(methods) - 1) / 2) for g in range(len(groups))]
        drawn = ax.bar(places, [row[method] for row in groups.values()], 0.36, color=colour, label=method)
        ax.bar_label(drawn, fmt="%.3f", padding=2, fontsize=8)
    ax.set_xticks(range(len(groups)), list(groups))
    ax.set(xlabel="test set", ylabel=what)
    ax.margins(y=0.15)
    figure.legend(loc="outside upper right", ncols=len(methods))
    save(figure, to, name)
