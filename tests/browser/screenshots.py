"""Makes the documentation's pictures of the plot: screenshots.py STUDY_FOLDER OUT_FOLDER [--width 1280].

Serves the study's MLflow store, opens its pages in headless Chromium, and writes ``plot-*.png``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from search.study import load
from search.tracking import default_uri, find_run, page_url
from search.tracking.views import view_url

sys.path.insert(0, str(Path(__file__).parent))

from conftest import NAMES, QUIET, serving

FRAME = "iframe.mlflow-html-iframe"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    options = parser.parse_args()
    study = load(options.study / "study.yaml")
    found = find_run(
        uri=default_uri(options.study), experiment=study.tracking.experiment or study.name, study_folder=options.study
    )
    assert found is not None, f"{options.study} is not in MLflow"
    options.out.mkdir(parents=True, exist_ok=True)
    path = next(filter(None, map(shutil.which, NAMES)))
    with serving(options.study) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*QUIET, "--no-first-run"])
        page = browser.new_page(viewport={"width": options.width, "height": options.width * 5 // 8})
        page.set_default_timeout(300_000)

        def shoot(name: str) -> None:
            page.wait_for_timeout(2000)
            page.screenshot(path=options.out / f"plot-{name}.png")
            print(options.out / f"plot-{name}.png", flush=True)

        page.goto(f"{server.url}/#/experiments/{found[0]}?workflowType=machine_learning")
        page.get_by_role("link", name="Pareto plot").first.wait_for()
        close_assistant(page)
        shoot("experiment")
        page.goto(page_url(server.url, *found))
        page.frame_locator(FRAME).locator("body[data-drawn]").wait_for()
        close_assistant(page)
        # Where the store lies is nobody's business.
        page.get_by_text("Path: file:").evaluate("e => { e.style.visibility = 'hidden' }")
        shoot("mlflow")
        page.goto(f"{server.url}/{view_url(*found, front=False)}")
        page.locator(".js-plotly-plot .scatterlayer .point").first.wait_for()
        close_assistant(page)
        shoot("view")
        page.goto((options.study / "pareto.html").resolve().as_uri())
        page.wait_for_selector("body[data-drawn]")
        shoot("page")
        page.select_option("#colour", "design")
        page.select_option("#published", page.evaluate("() => document.getElementById('published').options[1].value"))
        shoot("families")
        browser.close()


def close_assistant(page: Any) -> None:
    """Closes what MLflow opens beside its pages on a first visit."""
    button = page.get_by_role("button", name="Close").last
    if page.get_by_text("MLflow Assistant").count() and button.count():
        button.click()


if __name__ == "__main__":
    main()
