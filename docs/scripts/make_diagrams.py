"""Draw the diagrams of the documentation as plain SVG files: `python docs/scripts/make_diagrams.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np

IMAGES = Path(__file__).parents[1] / "images"
MR, PET, GREY, LINE, PAPER = "#2f5d8a", "#b4531a", "#5b6470", "#98a2ad", "#ffffff"
TINTS = {MR: "#e6eef6", PET: "#fbece1", GREY: "#f1f3f5"}
HEADS = {MR: "mr", PET: "pet", GREY: "grey"}
FONT = "font-family='system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif'"


class Drawing:
    """A canvas that collects SVG elements."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def box(self, x: float, y: float, w: float, h: float, text: str, colour: str = GREY, size: int = 15) -> None:
        """A rounded box with centred lines of text."""
        self.parts.append(
            f"<rect x='{x}' y='{y}' width='{w}' height='{h}' rx='8' fill='{TINTS[colour]}' stroke='{colour}' "
            "stroke-width='1.5'/>"
        )
        lines = text.split("\n")
        top = y + h / 2 - (len(lines) - 1) * size * 0.62
        for number, line in enumerate(lines):
            self.text(x + w / 2, top + number * size * 1.24, line, colour, size, "middle")

    def text(self, x: float, y: float, text: str, colour: str = GREY, size: int = 14, anchor: str = "start") -> None:
        """One line of text, vertically centred on y."""
        self.parts.append(
            f"<text x='{x:g}' y='{y + size * 0.35:g}' font-size='{size}' fill='{colour}' text-anchor='{anchor}' {FONT}>"
            f"{escape(text)}</text>"
        )

    def arrow(self, *points: tuple[float, float], colour: str = GREY, dashed: bool = False) -> None:
        """A line through the points with a head at the last one."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        dashes = " stroke-dasharray='5 4'" if dashed else ""
        self.parts.append(
            f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='1.7'{dashes} "
            f"marker-end='url(#{HEADS[colour]})'/>"
        )

    def curve(
        self, xs: Sequence[float], ys: Sequence[float], colour: str, width: float = 2, opacity: float = 1
    ) -> None:
        """A line through many points."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
        self.parts.append(
            f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='{width}' opacity='{opacity}' "
            "stroke-linejoin='round'/>"
        )

    def rule(self, x1: float, y1: float, x2: float, y2: float, colour: str = LINE) -> None:
        """A thin straight line."""
        self.parts.append(f"<line x1='{x1}' y1='{y1}' x2='{x2}' y2='{y2}' stroke='{colour}' stroke-width='1'/>")

    def dot(self, x: float, y: float, filled: bool, colour: str = MR) -> None:
        """A disc, or a ring."""
        fill = colour if filled else PAPER
        self.parts.append(f"<circle cx='{x}' cy='{y}' r='8' fill='{fill}' stroke='{colour}' stroke-width='1.5'/>")

    def svg(self) -> str:
        """The file's content."""
        markers = "".join(
            f"<marker id='{name}' viewBox='0 0 10 10' refX='9' refY='5' markerWidth='7' markerHeight='7' "
            f"orient='auto-start-reverse'><path d='M0 0L10 5L0 10z' fill='{colour}'/></marker>"
            for colour, name in HEADS.items()
        )
        return (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {self.width} {self.height}' role='img' "
            f"aria-label='{escape(self.title, quote=True)}'>\n<title>{escape(self.title)}</title>\n"
            f"<defs>{markers}</defs>\n<rect width='{self.width}' height='{self.height}' rx='10' fill='{PAPER}'/>\n"
            + "\n".join(self.parts)
            + "\n</svg>\n"
        )


def pipeline() -> Drawing:
    """Raw scans to the model grid and back."""
    drawing = Drawing(960, 250, "From raw scans to the model grid, through the model, and back to the subject's grid")
    names = [
        ("raw MR + PET\nNIfTI, BIDS", GREY),
        ("checks\nheader, affine,\nvoxels", GREY),
        ("brain mask, N4,\nPET to MR (rigid),\nMR to template", MR),
        ("one interpolation\nonto the\nmodel grid", MR),
        ("model\nmean + flow", PET),
        ("one interpolation\nback to the\nsubject's T1 grid", PET),
    ]
    width, gap = 134, 24
    for number, (text, colour) in enumerate(names):
        x = 18 + number * (width + gap)
        drawing.box(x, 40, width, 88, text, colour, 14)
        if number:
            drawing.arrow((x - gap, 84), (x - 2, 84))
    first, last = 18 + 2 * (width + gap) + width / 2, 18 + 5 * (width + gap) + width / 2
    drawing.box(first + 60, 184, last - first - 120, 44, "JSON record: transforms, intensities, hashes", GREY, 14)
    drawing.arrow((first, 128), (first, 206), (first + 58, 206), dashed=True)
    drawing.arrow((last - 60, 206), (last, 206), (last, 130), dashed=True)
    return drawing


def mean() -> Drawing:
    """The target as a mean and a residual, along one line through the brain."""
    drawing = Drawing(960, 300, "The PET is the conditional mean plus a residual, which the flow models")
    rng = np.random.default_rng(3)
    x = np.linspace(0, 1, 160)
    shape = 0.9 + 0.55 * np.exp(-(((x - 0.25) / 0.09) ** 2)) + 0.7 * np.exp(-(((x - 0.72) / 0.1) ** 2))
    shape -= 0.35 * np.exp(-(((x - 0.5) / 0.06) ** 2))
    kernel = np.hanning(13) / np.hanning(13).sum()
    residual = np.convolve(0.28 * rng.standard_normal(160 + 12), kernel, "valid") + 0.07 * np.sin(5 * x)
    panels = [
        ("PET of one subject", shape + residual, PET),
        ("mean of MR and side", shape, MR),
        ("residual", residual, PET),
    ]
    for number, (title, values, colour) in enumerate(panels):
        left, base = 40 + number * 315, 225 if number < 2 else 150
        drawing.text(left + 115, 32, title, colour, 16, "middle")
        drawing.rule(left, base, left + 230, base)
        drawing.curve(left + 230 * x, base - 105 * values, colour, 2.4)
        if number:
            drawing.text(left - 42, 150, "=" if number == 1 else "+", GREY, 30, "middle")
    drawing.text(155, 272, "SUVR along a line through the brain", GREY, 14, "middle")
    drawing.text(470, 272, "closed form, log-determinant 0", GREY, 14, "middle")
    drawing.text(785, 272, "modelled by the flow, exact density", GREY, 14, "middle")
    return drawing


def levels() -> Drawing:
    """Three levels of the flow, the source's features beside them, a prior per level."""
    drawing = Drawing(960, 400, "Three levels of flow steps, each with source features, a latent and a prior")
    drawing.box(20, 40, 120, 60, "MR's latents,\nmean image", MR, 14)
    drawing.box(20, 180, 120, 60, "PET residual,\nwhitened", PET, 14)
    names = ["level 1: finest", "level 2", "level 3: coarsest"]
    for number, name in enumerate(names):
        x = 200 + number * 260
        drawing.box(x, 40, 190, 60, f"features {number + 1}\n1/{2 ** (number + 1)} of the resolution", MR, 14)
        drawing.box(x, 165, 190, 90, f"{name}\nHaar squeeze,\nsteps of flow", PET, 14)
        drawing.box(x + 45, 325, 100, 46, f"latent z{number + 1}", PET, 14)
        before = x - (60 if number == 0 else 70)
        drawing.arrow((before, 70), (x - 2, 70), colour=MR)
        drawing.arrow((before, 210), (x - 2, 210), colour=PET)
        drawing.arrow((x + 95, 100), (x + 95, 163), colour=MR, dashed=True)
        drawing.arrow((x + 95, 255), (x + 95, 323), colour=PET)
        drawing.arrow((x + 168, 100), (x + 168, 140), (x + 205, 140), (x + 205, 348), (x + 147, 348), colour=MR)
        drawing.text(x + 178, 366, "prior", MR, 13, "middle")
        if number < 2:
            drawing.text(x + 230, 226, "half", GREY, 13, "middle")
    drawing.text(305, 289, "the other half", GREY, 13)
    drawing.text(287, 135, "with context", GREY, 13, "end")
    return drawing


def step() -> Drawing:
    """One step of flow."""
    drawing = Drawing(
        960, 240, "One step of flow: actnorm, 1x1x1 mixing, injector, coupling; a source map reaches each piece"
    )
    names = [
        ("actnorm\nscale and shift\nper channel", GREY),
        ("1x1x1 mixing\nLU matrix over\nchannels", GREY),
        ("injector\n(optional) affine\nof all channels", MR),
        ("coupling\naffine of one half\nby the other half", PET),
    ]
    drawing.text(26, 165, "x", PET, 20)
    for number, (text, colour) in enumerate(names):
        x = 70 + number * 215
        drawing.box(x, 120, 170, 92, text, colour, 14)
        drawing.arrow((x - 43 if number else 44, 165), (x - 2, 165), colour=PET)
        drawing.arrow((x + 85, 62), (x + 85, 118), colour=MR, dashed=number < 2)
    drawing.arrow((885, 165), (922, 165), colour=PET)
    drawing.text(930, 165, "z", PET, 20)
    drawing.box(70, 20, 815, 42, "with context: source map of this level, or of this step", MR, 14)
    drawing.text(242, 92, "conditional variants only", GREY, 13, "middle")
    return drawing


def low_rank() -> Drawing:
    """Samples of a profile with independent and with correlated latents."""
    drawing = Drawing(
        960, 332, "Independent latents average out over a region; correlated latents keep the region's spread"
    )
    rng = np.random.default_rng(5)
    x = np.linspace(0, 1, 90)
    region = (np.abs(x - 0.3) < 0.16).astype(float) - (np.abs(x - 0.72) < 0.14)
    for side, (title, share) in enumerate((("independent latents", 0.0), ("with a law of regions", 1.0))):
        left = 40 + side * 480
        drawing.text(left + 200, 30, title, GREY, 16, "middle")
        for start, end, name in ((0.14, 0.46, "region A"), (0.58, 0.86, "region B")):
            drawing.parts.append(
                f"<rect x='{left + 400 * start:g}' y='56' width='{400 * (end - start):g}' height='206' fill='#f1f3f5'/>"
            )
            drawing.text(left + 200 * (start + end), 282, name, GREY, 14, "middle")
        drawing.rule(left, 160, left + 400, 160)
        for colour, sign in ((MR, 1.0), (PET, -1.0), (GREY, 0.25)):
            noise = np.convolve(rng.standard_normal(len(x) + 4), np.ones(5) / 5**0.5, "valid")
            smooth = np.convolve(np.pad(region, 4, mode="edge"), np.ones(9) / 9, "valid")
            values = (26 - 14 * share) * noise + 48 * share * sign * smooth
            drawing.curve(left + 400 * x, 160 - values, colour, 1.8, 0.95)
    drawing.text(240, 308, "every region mean is nearly the same", GREY, 14, "middle")
    drawing.text(720, 308, "whole regions rise and fall together", GREY, 14, "middle")
    return drawing


def memory() -> Drawing:
    """What each memory mode keeps for the backward pass."""
    drawing = Drawing(960, 220, "Activations that are kept: stored, checkpoint, reversible")
    rows = [("stored", "every activation", 1), ("checkpoint", "one per step, the step runs again", 3)]
    rows.append(("reversible", "one per level, the inverse recovers the rest", 12))
    for line, (name, text, every) in enumerate(rows):
        y = 45 + line * 62
        drawing.text(30, y, name, MR, 16)
        drawing.text(610, y, text, GREY, 15)
        for index in range(13):
            drawing.dot(170 + index * 34, y, index % every == 0 if every < 12 else index == 12)
    drawing.text(374, 205, "activations of one level with four steps, in order", GREY, 13, "middle")
    return drawing


def calibration() -> Drawing:
    """Nominal against observed coverage of region means, read from the table of the ablations."""
    drawing = Drawing(960, 330, "Share of region means inside their intervals, with and without the law of regions")
    results, nominal = (IMAGES.parent / "results" / "ablations.md").read_text(), (0.5, 0.8, 0.95)
    left, base, size = 110, 270, 230
    for tick in (0.0, 0.5, 1.0):
        drawing.text(left + size * tick, base + 18, f"{tick:.0%}", GREY, 12, "middle")
        drawing.text(left - 10, base - size * tick, f"{tick:.0%}", GREY, 12, "end")
        drawing.rule(left, base - size * tick, left + size, base - size * tick, "#e3e7eb")
    drawing.rule(left, base, left + size, base - size)
    rows = [("dualflow", "with the law of regions", PET), ("dualflow_no_low_rank", "without it", MR)]
    for line, (flow, label, colour) in enumerate(rows):
        row = next(row for row in results.splitlines() if row.startswith(f"| {flow} "))
        observed = [float(value) for value in row.strip("| ").split(" | ")[-1].split(" / ")]
        xs, ys = [left + size * level for level in nominal], [base - size * share for share in observed]
        drawing.curve(xs, ys, colour, 2.4)
        for x, y in zip(xs, ys, strict=True):
            drawing.dot(x, y, True, colour)
        y = 90 + 76 * line
        drawing.dot(430, y, True, colour)
        drawing.text(450, y, label, colour, 16)
        shares = " / ".join(f"{share:.1%}" for share in observed)
        drawing.text(450, y + 26, f"{shares} of the region means inside 50% / 80% / 95% intervals", GREY, 14)
    drawing.text(450, 246, "the diagonal is perfect calibration", GREY, 14)
    drawing.text(left + size / 2, base + 42, "nominal coverage", GREY, 14, "middle")
    drawing.text(left - 46, 20, "observed", GREY, 14)
    return drawing


DRAWINGS: dict[str, Callable[[], Drawing]] = {
    "pipeline": pipeline,
    "mean": mean,
    "levels": levels,
    "step": step,
    "low_rank": low_rank,
    "memory": memory,
    "calibration": calibration,
}


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        (IMAGES / f"{name}.svg").write_text(draw().svg())
