"""A picture of a run's report, by a headless Chromium.

uv run python docs/screenshot.py RUN docs/report.png
"""

import argparse
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.report.browser import Browser, find_chromium


def main() -> None:
    """Take it, and cut it."""
    parser = argparse.ArgumentParser(description="Picture of a run's report.")
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--width", type=int, default=1160, help="of the window, in pixels")
    parser.add_argument("--height", type=int, default=1560, help="shown of the page, from its top")
    given = parser.parse_args()
    program = find_chromium()
    if program is None:
        sys.exit("no Chromium is installed")
    with Browser(program) as browser:
        browser.open(given.run / "report.html", width=given.width)
        browser.screenshot(given.output)
    # few colours: a tenth of the size, and no difference to the eye
    picture = Image.open(given.output).convert("RGB").crop((0, 0, given.width, given.height))
    picture.quantize(128).save(given.output, optimize=True)
    print(f"{given.output}: {given.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
