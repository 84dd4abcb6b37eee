"""Where the tour's pictures go: into runs/tour, and in a notebook below the cell as well."""

import io
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the repository
SMALL_MODEL = ROOT / "weights" / "tiny-world"
FOLDER = Path(os.environ.get("TINYFT_TOUR_PICTURES", ROOT / "runs" / "tour"))


def show(figure, name: str) -> None:
    """Save a matplotlib Figure as NAME.png in FOLDER and say so; display it where this runs in a notebook."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.png").write_bytes(buffer.getvalue())
    path = FOLDER / f"{name}.png"
    print(f"picture: {path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path}")
    if "ipykernel" in sys.modules:
        from IPython.display import Image, display

        display(Image(buffer.getvalue()))
