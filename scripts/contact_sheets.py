"""Put one picture sheet of each generated set, and of `digits`, into docs/images: contact-objects.png and so on.

    python scripts/contact_sheets.py [--out docs/images] [--seed 2]

The pictures are the first ones of the series that the package tests on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from attndrift.data import load_dataset
from attndrift.data.generated import GENERATED
from attndrift.data.generated.canvas import GeneratedSet

COLUMNS = 10
# Grain makes true-colour PNGs large; a palette keeps each sheet below 400 kB.
COLOURS = 256


def sheet(drawn: GeneratedSet, seed: int) -> Image.Image:
    """Ten columns: a row a class where there are ten classes, else classes from left to right, down the rows."""
    classes = len(drawn.class_names)
    if classes <= 10:
        indices = [label + classes * column for label in range(classes) for column in range(COLUMNS)]
    else:
        indices = list(range(classes if classes % COLUMNS == 0 else 2 * classes))
    indices += [-1] * (-len(indices) % COLUMNS)
    blank = np.full((64, 64, 3), 255, np.uint8)
    pictures = [drawn.draw(seed, index) if index >= 0 else blank for index in indices]
    rows = [np.concatenate(pictures[at : at + COLUMNS], axis=1) for at in range(0, len(pictures), COLUMNS)]
    return Image.fromarray(np.concatenate(rows, axis=0))


def digits_sheet() -> Image.Image:
    """Ten columns, a row a digit: the first ten of each in the test split, enlarged without smoothing."""
    split = load_dataset("digits").test
    rows = []
    for label in range(10):
        first = np.flatnonzero(split.labels == label)[:COLUMNS]
        rows.append(
            np.concatenate([np.asarray(split[int(i)].resize((64, 64), Image.Resampling.NEAREST)) for i in first], 1)
        )
    return Image.fromarray(np.concatenate(rows, axis=0))


def main() -> None:
    """Write the sheets and say where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "images")
    parser.add_argument("--seed", type=int, default=2, help="2 is the series of the test splits")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sheets = {name: sheet(drawn, args.seed) for name, drawn in GENERATED.items()} | {"digits": digits_sheet()}
    for name, picture in sheets.items():
        path = args.out / f"contact-{name}.png"
        picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
