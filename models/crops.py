"""Cut photographs into crops, for `gbprewrite top` where no folder of photographs is at hand.

    python models/crops.py FOLDER PHOTO...

Each photograph is cut twice without overlap: into tiles of about a fifth of its height and into its quarters.
"""

import sys
from itertools import pairwise
from pathlib import Path

from PIL import Image

LINES = (5, 2)


def crops(photo: Image.Image, lines: int) -> list[Image.Image]:
    """Square-like tiles in so many lines, in reading order."""
    columns = max(1, round(lines * photo.width / photo.height))
    across = [photo.width * i // columns for i in range(columns + 1)]
    down = [photo.height * i // lines for i in range(lines + 1)]
    return [
        photo.crop((left, top, right, bottom)) for top, bottom in pairwise(down) for left, right in pairwise(across)
    ]


def main(folder: Path, paths: list[Path]) -> None:
    """Write the crops as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        photo = Image.open(path).convert("RGB")
        for lines in LINES:
            for i, crop in enumerate(crops(photo, lines)):
                crop.save(folder / f"{path.stem}_{lines}_{i:02}.png")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), [Path(p) for p in sys.argv[2:]])
