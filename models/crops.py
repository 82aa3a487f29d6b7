"""Cut photographs into crops, for `gbprewrite top` where no folder of photographs is at hand.

    python models/crops.py FOLDER PHOTO...

Each photograph is cut twice without overlap: into tiles of about a fifth of its height and into its quarters.
"""

from itertools import pairwise
from pathlib import Path

import click
from PIL import Image

from gbprewrite import files
from gbprewrite.cli.program import Script
from gbprewrite.photos import images

LINES = (5, 2)


def crops(photo: Image.Image, lines: int) -> list[Image.Image]:
    """Square-like tiles in so many lines, in reading order."""
    columns = max(1, round(lines * photo.width / photo.height))
    across = [photo.width * i // columns for i in range(columns + 1)]
    down = [photo.height * i // lines for i in range(lines + 1)]
    return [
        photo.crop((left, top, right, bottom)) for top, bottom in pairwise(down) for left, right in pairwise(across)
    ]


@click.command(cls=Script, help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("photos", metavar="PHOTO...", nargs=-1, required=True, type=click.Path(path_type=Path))
def main(folder: Path, photos: tuple[Path, ...]) -> None:
    """Write the crops as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in photos:
        photo = images.read(path).convert("RGB")
        for lines in LINES:
            for i, crop in enumerate(crops(photo, lines)):
                place = folder / f"{path.stem}_{lines}_{i:02}.png"
                files.check_unread([place], photos, "Choose another FOLDER.", "read in this run")
                with files.whole(place) as part:
                    crop.save(part, "PNG")


if __name__ == "__main__":
    main()
