"""A figure of a comparison on its way out: into a page, or into SVG and PNG files.

On a page colours are CSS variables, so that one drawing serves light and dark, and text is in the
page's own font; a file has its own legend and colours.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from pacesetter.agent.runs.folder import write_bytes
from pacesetter.experiments.report.looks import INK, Look, css_variables
from pacesetter.inner_models.lookup import require

DPI = 200
"""Of PNG files."""


class Drawing:
    """A figure that is ready to be put into a page or into files.

    Args:
        figure: matplotlib's.
        text: what the figure shows, for those who do not see it.
        legend: labels of what is drawn, by look; for files only, a page has a legend of its own.
    """

    def __init__(self, figure: Any, text: str, legend: Mapping[Look, str]) -> None:
        self._figure, self._text, self._legend = figure, text, dict(legend)

    def element(self, name: str) -> str:
        """The figure as an element for an HTML page, without prolog, metadata or foreign names.

        Args:
            name: unique on the page; no id that the element defines is used by another.
        """
        svg = self._svg(transparent=True)
        svg = svg[svg.index("<svg") :].replace("xlink:href", "href")
        svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
        svg = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", svg, flags=re.DOTALL)
        # Of a line's id its class is made: the legend's switches act on all figures at once.
        svg = re.sub(r' id="(s\d)(?:-\w+)?"', r' class="\1"', svg)
        used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', svg))
        svg = re.sub(r' id="([^"]+)"', lambda m: m[0] if m[1] in used else "", svg)
        for found in used:
            svg = re.sub(rf'(?<=["#]){re.escape(found)}(?=["\)])', f"{name}-{found}", svg)
        svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
        for colour, variable in css_variables().items():
            svg = svg.replace(colour, f"var({variable})")
        # Hundredths of a point are more than can be seen, and half the size of the file.
        svg = re.sub(r'(?<= d=")[^"]+', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), svg)
        svg = re.sub(
            r' width="[\d.]+pt" height="[\d.]+pt"| height="[\d.]+pt" width="[\d.]+pt"', "", svg
        )
        return svg.replace("<svg", f'<svg role="img" aria-label="{escape(self._text)}"', 1)

    def write(self, stem: Path) -> None:
        """Writes the figure with its legend as ``stem.svg`` and ``stem.png``."""
        if len(self._legend) > 1:
            matplotlib_lines = require("matplotlib.lines", extra="compare")
            handles = [
                matplotlib_lines.Line2D([], [], **line_style(look), label=label)
                for look, label in self._legend.items()
            ]
            width, height = self._figure.get_size_inches()
            self._figure.set_size_inches(width, height + 0.16 * len(handles) + 0.1)
            self._figure.legend(
                handles=handles,
                loc="outside lower center",
                frameon=False,
                fontsize=7.5,
                labelcolor=INK,
                handlelength=3,
            )
            self._legend = {}
        write_bytes(stem.with_name(f"{stem.name}.svg"), self._svg().encode())
        # What is laid out stays as it is: doing it again takes most of the time.
        self._figure.set_layout_engine("none")
        picture = io.BytesIO()
        self._figure.savefig(picture, format="png", dpi=DPI, metadata={"Software": None})
        write_bytes(stem.with_name(f"{stem.name}.png"), picture.getvalue())

    def _svg(self, *, transparent: bool = False) -> str:
        matplotlib = require("matplotlib", extra="compare")
        text = io.StringIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        # Text stays text: it can be searched and is drawn in the reader's own font.
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pacesetter"}):
            self._figure.savefig(text, format="svg", metadata=metadata, transparent=transparent)
        return text.getvalue()


def line_style(look: Look) -> dict[str, Any]:
    """Arguments of matplotlib for a line of this look."""
    return {
        "color": look.colour,
        "linewidth": look.width,
        "linestyle": (0, look.dash) if look.dash else "-",
        "marker": look.marker,
        "markersize": 4,
        "markeredgewidth": 0,
    }
