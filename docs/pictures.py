"""The pictures of the README and of these pages, taken from a real sweep: `make pictures`.

terminal.svg   the live table in the middle of the sweep
compare.png    MLflow's page that compares its trials, in a real browser
report.png     two pictures of its report, side by side
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from lzsweep.sweep.progress import LiveTable
from lzsweep.sweep.studies import find_study
from lzsweep.sweep.study import Study

DOCS = Path(__file__).parent
FOLDER = DOCS.parent / "build" / "pictures"
STUDY = "demo"
COMMAND = ["-m", "sweeps=demo", f"study.name={STUDY}"]
N_FINISHED = 7
"""Trials that have ended when the table is taken."""
OBJECTIVE = "val/loss_unweighted"
WIDTH = 124
GREETED = "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1"
"""What MLflow's page notes when its assistant has opened by itself, which it does once."""
# The picture shall load nothing from elsewhere: the reader's own fixed-width font does.
SVG = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    sweep = start("sweep.log", *COMMAND, folder=FOLDER)
    take_table(FOLDER, sweep)
    if sweep.wait():
        raise SystemExit((FOLDER / "sweep.log").read_text())
    take_report(FOLDER / "multirun" / STUDY / "report")
    with served(FOLDER) as uri:
        take_comparison(uri)


def start(log: str, *arguments: str, folder: Path) -> subprocess.Popen[bytes]:
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("LZSWEEP_", "MLFLOW_"))
    }
    with (folder / log).open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "lzsweep", *arguments],
            cwd=folder,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def take_table(folder: Path, sweep: subprocess.Popen[bytes]) -> None:
    """Follow the sweep as its own terminal would, and keep the table of one moment."""
    study = await_study(f"sqlite:///{folder / 'lzsweep.db'}", folder, sweep)
    console = Console(record=True, width=WIDTH, height=40, file=io.StringIO(), force_terminal=True)
    table = LiveTable(study, console)
    while sweep.poll() is None:
        trials = study.trials()
        table.update(trials)
        if sum(t.is_finished for t in trials) >= N_FINISHED and all(
            t.curve for t in trials if t.state == "running"
        ):
            break
        time.sleep(1)
    console.print(table.renderable)
    title = f"lzsweep {' '.join(COMMAND[:2])}"
    console.save_svg(str(DOCS / "terminal.svg"), title=title, code_format=SVG)


def await_study(url: str, folder: Path, sweep: subprocess.Popen[bytes]) -> Study:
    while sweep.poll() is None:
        if (folder / "lzsweep.db").exists() and (study := find_study(url, STUDY)):
            return study
        time.sleep(1)
    raise SystemExit((folder / "sweep.log").read_text())


def take_report(report: Path) -> None:
    pictures = [Image.open(report / f"{n}.png") for n in ("curves", "parallel-coordinates")]
    height = min(picture.height for picture in pictures)
    scaled = [p.resize((round(p.width * height / p.height), height)) for p in pictures]
    both = Image.new("RGB", (sum(p.width for p in scaled), height), "white")
    both.paste(scaled[0], (0, 0))
    both.paste(scaled[1], (scaled[0].width, 0))
    both.save(DOCS / "report.png", optimize=True)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    server = start("serve.log", "serve", "--port", "0", folder=folder)
    try:
        while "ready at " not in (text := (folder / "serve.log").read_text()):
            if server.poll() is not None:
                raise SystemExit(text)
            time.sleep(0.5)
        yield text.split("ready at ")[1].split()[0]
    finally:
        server.terminate()
        server.wait()


def take_comparison(uri: str) -> None:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("lzsweep")
    assert experiment is not None
    query = "tags.`lzsweep.kind` = 'study'"
    (parent,) = client.search_runs([experiment.experiment_id], query)
    note = parent.data.tags["mlflow.note.content"]
    link = re.findall(r"\[compare all trials\]\(([^)]*)\)", note)[0]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM") or shutil.which("chromium"),
            args=["--headless", "--no-sandbox", "--disable-gpu"],
            timeout=240_000,
        )
        page = browser.new_page(viewport={"width": 1120, "height": 930})
        page.set_default_timeout(240_000)
        page.add_init_script(f"localStorage.setItem('{GREETED}', true)")
        page.goto(f"{uri}/{link}")
        choose_objective(page)
        page.screenshot(path=DOCS / "compare.png")
        browser.close()


def choose_objective(page: Page) -> None:
    """MLflow draws the metric that came first; a person would choose the objective."""
    page.locator(".js-plotly-plot .parcoords").first.wait_for()
    metrics = page.get_by_text("Metrics:", exact=True).locator("xpath=following-sibling::*[1]")
    metrics.click()
    page.keyboard.type(OBJECTIVE)
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    metrics.locator("[class*=selection-item-remove]").first.click()
    page.keyboard.press("Escape")
    page.locator(".axis-title", has_text=OBJECTIVE).wait_for()


if __name__ == "__main__":
    main()
