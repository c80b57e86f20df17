"""A picture of a run's report, or of any page of finetune, by a headless Chromium.

uv run python docs/screenshot.py RUN docs/report.png
uv run python docs/screenshot.py sheet.html sheet.png --width 390 --dark --whole
"""

import argparse
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.report.browser import Browser, find_chromium


def main() -> None:
    """Take it, and cut it."""
    parser = argparse.ArgumentParser(description="Picture of a run's report, or of a page.")
    parser.add_argument("run", type=Path, help="run folder, or HTML file")
    parser.add_argument("output", type=Path)
    parser.add_argument("--width", type=int, default=1160, help="of the window, in pixels")
    parser.add_argument("--height", type=int, default=1560, help="shown of the page, from its top")
    parser.add_argument("--whole", action="store_true", help="show the page to its end")
    parser.add_argument("--dark", action="store_true", help="in dark colours")
    given = parser.parse_args()
    program = find_chromium()
    if program is None:
        sys.exit("no Chromium is installed")
    page = given.run if given.run.suffix == ".html" else given.run / "report.html"
    with Browser(program) as browser:
        browser.open(page, width=given.width, dark=given.dark)
        browser.screenshot(given.output)
        widest = browser.evaluate("document.documentElement.scrollWidth")
    if widest > given.width:
        print(f"{page}: {widest} px wide in a window of {given.width} px")
    if not given.whole:
        picture = Image.open(given.output).convert("RGB").crop((0, 0, given.width, given.height))
        # few colours: a tenth of the size, and no difference to the eye; a whole page has too many for that
        picture.quantize(128).save(given.output, optimize=True)
    print(f"{given.output}: {given.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
