"""What people see: MLflow's pages over a real sweep, in a real browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from mlflow import MlflowClient
from playwright.sync_api import Page, sync_playwright

from tests.go.engine import PROJECT, missing
from tests.server.conftest import STUDY, Served

pytestmark = [pytest.mark.slow, pytest.mark.server]
SCREENSHOTS = PROJECT / "build" / "screenshots"
PATIENCE_MS = 240_000
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        missing("the program chromium")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=list(FLAGS), timeout=PATIENCE_MS
        )
        page = browser.new_page(viewport={"width": 1500, "height": 1500})
        page.set_default_timeout(PATIENCE_MS)
        page.on("dialog", lambda dialog: pytest.fail("a name was run as a script"))
        yield page
        browser.close()


@pytest.fixture(scope="module")
def experiment(server: Served) -> str:
    found = MlflowClient(server.uri).get_experiment_by_name("lzsweep")
    assert found is not None
    assert found.tags["mlflow.experimentKind"] == "custom_model_development"
    return str(found.experiment_id)


def test_a_study_is_one_row_that_opens_to_its_trials(
    server: Served, experiment: str, page: Page
) -> None:
    page.goto(f"{server.uri}/#/experiments/{experiment}/runs?workflowType=machine_learning")
    row = page.get_by_role("link", name=STUDY)
    row.wait_for()  # the name is shown as text, its signs of HTML too
    assert page.get_by_text("#000").count() == 0, "the trials are folded away"
    page.locator("[class*=ag-row]").get_by_role("button").first.click()
    page.get_by_text("#000 filters=4 lr=0.01").first.wait_for()
    assert page.get_by_text("#003").count() >= 1
    page.screenshot(path=SCREENSHOTS / "experiment.png")


def test_the_study_links_to_the_comparison_of_its_trials(
    server: Served, experiment: str, page: Page
) -> None:
    client = MlflowClient(server.uri)
    query = "tags.`lzsweep.kind` = 'study'"
    (parent,) = client.search_runs([experiment], query)
    note = parent.data.tags["mlflow.note.content"]
    assert "**minimize `val/loss_unweighted`** over `network.filters`, `lr`" in note
    assert "2 complete, 2 failed" in note
    run = f"#/experiments/{experiment}/runs/{parent.info.run_id}?workflowType=machine_learning"
    page.goto(f"{server.uri}/{run}")
    link = page.get_by_role("link", name="compare all trials")
    link.wait_for()
    page.screenshot(path=SCREENSHOTS / "study.png")
    page.goto(f"{server.uri}/{link.get_attribute('href')}")
    page.get_by_text("Comparing 4 Runs").first.wait_for()
    plot = page.locator(".js-plotly-plot .parcoords").first
    plot.wait_for()
    axes = page.locator(".js-plotly-plot .axis-title").all_text_contents()
    assert {"network.filters", "lr"} <= set(axes)
    page.screenshot(path=SCREENSHOTS / "compare.png")
    trial, *_ = client.search_runs([experiment], "tags.`lzsweep.trial` = '0'")
    assert {"system/cpu_percent", "val/loss_unweighted"} <= trial.data.metrics.keys()


def test_the_report_opens_among_the_artifacts(
    server: Served, experiment: str, page: Page, tmp_path: Path
) -> None:
    client = MlflowClient(server.uri)
    (parent,) = client.search_runs([experiment], "tags.`lzsweep.kind` = 'study'")
    place = f"artifacts/{quote('report/index.html')}?workflowType=machine_learning"
    page.goto(f"{server.uri}/#/experiments/{experiment}/runs/{parent.info.run_id}/{place}")
    inside = page.frame_locator("iframe").first
    inside.get_by_role("heading", name=STUDY).wait_for()
    assert inside.get_by_alt_text("Learning curves").count() == 1
    page.screenshot(path=SCREENSHOTS / "report.png")


def test_signs_of_html_are_shown_as_text(server: Served, page: Page) -> None:
    client = MlflowClient(server.uri)
    experiment = client.create_experiment(
        "html", tags={"mlflow.experimentKind": "custom_model_development"}
    )
    nasty = "<img src=x onerror=alert('%s')>"  # a dialog would fail the test
    run = client.create_run(experiment, run_name=nasty % "name").info.run_id
    client.log_param(run, "param", nasty % "param")
    client.log_param(run, "long", "long " * 1200)
    client.set_tag(run, "tag", nasty % "tag")
    client.set_tag(run, "mlflow.note.content", f"a note {nasty % 'note'} that ends")
    page.goto(f"{server.uri}/#/experiments/{experiment}/runs?workflowType=machine_learning")
    page.get_by_role("link", name=nasty % "name").wait_for()
    page.goto(f"{server.uri}/#/experiments/{experiment}/runs/{run}?workflowType=machine_learning")
    for what in ("name", "param", "tag"):
        page.get_by_text(nasty % what).first.wait_for()
    page.get_by_text("that ends").first.wait_for()
    assert page.locator("img[onerror]").count() == 0
    page.screenshot(path=SCREENSHOTS / "html.png")
