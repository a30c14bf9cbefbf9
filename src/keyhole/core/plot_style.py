"""Colours and marks that all plots share."""

from __future__ import annotations

from typing import Any

COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#332288",
    "#999933",
    "#882255",
)  # told apart by the colour-blind
MARKERS = "osD^vPX<>"
INK, FAINT = "#333333", "#888888"
HOLLOW: dict[str, Any] = {
    "linestyle": "none",
    "markerfacecolor": "white",
    "markersize": 6.5,
    "markeredgewidth": 1.8,
}
