"""The pictures of the pages, from a run: its charts as SVG, and the top of its report by a headless Chromium.

uv run python docs/pictures.py DIR/my_run           # DIR: where docs/blocks.py ran
"""

import argparse
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from finetune.report.figures import standalone_svg
from finetune.report.movement import kept_movements
from finetune.report.run_files import read_run
from finetune.report.training_charts import curve_charts, movement_chart, plan_chart
from finetune.run_folder import RunFolder
from tests.report.browser import Browser, find_chromium

PICTURES = Path(__file__).parent / "pictures"


def main() -> None:
    """Draw the charts, and take the pictures."""
    parser = argparse.ArgumentParser(description="Pictures of the pages.")
    parser.add_argument("run", type=Path)
    folder = parser.parse_args().run
    program = find_chromium()
    if program is None:
        sys.exit("no Chromium is installed")
    run = read_run(folder)
    moved = kept_movements(RunFolder(folder), run.stages, len(run.plan))
    assert moved is not None, "the run has not finished"
    charts = {"plan": plan_chart(run), "moved": movement_chart(run, moved), "curves": curve_charts(run)[0]}
    PICTURES.mkdir(exist_ok=True)
    for name, chart in charts.items():
        (PICTURES / f"{name}.svg").write_text(standalone_svg(chart))
    with Browser(program) as browser:
        for name, dark in {"report_top": False, "report_top_dark": True}.items():
            file = PICTURES / f"{name}.png"
            browser.open(folder / "report.html", width=900, dark=dark)
            height = int(browser.evaluate("document.querySelector('h2').offsetTop"))
            browser.screenshot(file)
            picture = Image.open(file).convert("RGB")
            # few colours: a tenth of the size, and no difference to the eye
            picture.crop((0, 0, picture.width, height)).quantize(64).save(file, optimize=True)
    for file in sorted(PICTURES.iterdir()):
        print(f"{file.name}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
