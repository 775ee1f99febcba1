"""Notebooks in JupyterLab and the report, in a real browser: headless Chromium, driven by Playwright.

Chromium is Debian's package; the tests are skipped if it is missing (.ci/run installs it). Screenshots stay
in ``tests/artifacts/`` (or in the folder that RETHINKER_ARTIFACTS names).
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from synthetic_run import write_run

from rethinker.lab.compare.command import write
from rethinker.lab.compare.rows import find
from rethinker.lab.figures.catalogue import FIGURES
from rethinker.lab.notebook.demo_benchmarks import demo_evaluations
from rethinker.lab.report.write import write_report

papermill = pytest.importorskip("papermill", reason="papermill is missing: pip install -e '.[lab,dev]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install -e '.[lab,dev]'")

ROOT = Path(__file__).resolve().parents[1]
ARTIFACTS = Path(os.environ.get("RETHINKER_ARTIFACTS", ROOT / "tests" / "artifacts"))
INSTALL = "apt-get update && apt-get install -y chromium"
SECONDS = 1000  # in Playwright's milliseconds

# JupyterLab's own errors in the console; each with its reason. Everything else fails the test.
NOISE = (
    r"Failed to load resource.*404.*/api/contents/.*checkpoints",  # it asks for checkpoints of a file that has none yet
    r"Failed to load resource.*404.*/lab/api/workspaces/",  # a new workspace has not been saved yet
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")  # Playwright keeps an event loop running in this thread until it ends
def browser() -> Iterator[sync_api.Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip(f"Chromium is missing. As root: {INSTALL}")
    # Nothing here needs the outside: no look-ups of Google's hosts either.
    arguments = ["--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, chromium_sandbox=os.geteuid() != 0, args=arguments)
        yield chromium
        chromium.close()


@dataclass
class Tab:
    """A page, and what its console complained about."""

    page: sync_api.Page
    errors: list[str] = field(default_factory=list)

    def shot(self, name: str, whole: bool = False) -> Path:
        """Keep a screenshot as ``<name>.png``."""
        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        path = ARTIFACTS / f"{name}.png"
        self.page.screenshot(path=path, full_page=whole)
        return path

    def complaints(self) -> list[str]:
        return [error for error in self.errors if not any(re.search(noise, error) for noise in NOISE)]


@contextmanager
def tab(browser: sync_api.Browser, *, scheme: str = "light", width: int = 1280, height: int = 900) -> Iterator[Tab]:
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})  # type: ignore[arg-type]
    found = Tab(context.new_page())

    def console(message: sync_api.ConsoleMessage) -> None:
        if message.type == "error":
            found.errors.append(f"{message.text} ({message.location.get('url', '')})")

    found.page.on("console", console)
    found.page.on("pageerror", lambda error: found.errors.append(f"uncaught: {error}"))
    try:
        yield found
    except BaseException:
        found.shot("failed")  # for a look at what went wrong
        raise
    finally:
        context.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("world") / "synthetic", stages=(5, 8), queries=24, held_out=48)


@pytest.fixture(scope="module")
def report(run: Path) -> Path:
    return write_report(run)


@dataclass
class Lab:
    """A JupyterLab server whose files are ``folder``."""

    url: str
    token: str
    folder: Path

    def place(self, name: str, parameters: dict[str, object]) -> str:
        """A copy of a notebook of the repository with other parameters, and its pictures; returns its address."""
        shutil.copytree(ROOT / "notebooks" / "images", self.folder / "images", dirs_exist_ok=True)
        notebook = papermill.iorw.load_notebook_node(str(ROOT / "notebooks" / name))
        papermill.iorw.write_ipynb(
            papermill.parameterize.parameterize_notebook(notebook, parameters), str(self.folder / name)
        )
        return f"{self.url}/doc/tree/{name}?token={self.token}"

    def kernel_ready(self, name: str) -> bool:
        """Whether the notebook has a kernel that waits for work and that a page is connected to."""
        with urllib.request.urlopen(f"{self.url}/api/sessions?token={self.token}", timeout=10) as answer:
            kernels = [session["kernel"] for session in json.load(answer) if session["path"] == name]
        return any(kernel["execution_state"] == "idle" and kernel["connections"] for kernel in kernels)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab from this environment, on loopback, with a token and settings of its own."""
    home = tmp_path_factory.mktemp("jupyter")
    folder = home / "notebooks"
    folder.mkdir()
    settings = {
        # All cells in the page, also those far below.
        "notebook-extension/tracker": {"windowingMode": "none", "scrollPastEnd": False},
        # No question whether news may be fetched.
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    }
    for name, values in settings.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    environment = os.environ | {
        "JUPYTER_TOKEN": token,
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
    }
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={folder}"]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    log = home / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for_server(server, url, token, log)
            yield Lab(url, token, folder)
        finally:
            server.terminate()  # its kernels go with it
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def wait_for_server(server: subprocess.Popen[bytes], url: str, token: str, log: Path) -> None:
    end = time.monotonic() + 90
    while time.monotonic() < end:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{url}/api/status?token={token}", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


IDLE = ".jp-Notebook-ExecutionIndicator[data-status='idle']"
# Every code cell has a number in its brackets: none is running or waiting.
DONE = """() => {
  const cells = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell')];
  const numbered = cell => /\\[\\d+\\]/.test(cell.querySelector('.jp-InputPrompt')?.textContent ?? '');
  return cells.length > 0 && cells.every(numbered);
}"""
FAILED = "[data-mime-type='application/vnd.jupyter.error']"
SIZES = "images => images.map(image => [image.naturalWidth, image.naturalHeight])"


def open_and_run(found: Tab, lab: Lab, name: str, parameters: dict[str, object]) -> None:
    """Open a copy of a notebook and run all its cells, by JupyterLab's own menu."""
    page = found.page
    page.goto(lab.place(name, parameters))
    page.wait_for_selector(IDLE, timeout=90 * SECONDS)
    end = time.monotonic() + 90
    while not lab.kernel_ready(name):  # the indicator says idle already before there is a kernel
        assert time.monotonic() < end, f"no kernel for {name}"
        page.wait_for_timeout(300)
    page.wait_for_selector(IDLE, timeout=30 * SECONDS)
    page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
    page.wait_for_timeout(1000)
    kernel_asked_for = page.locator(".jp-Dialog button.jp-mod-accept")
    if kernel_asked_for.count():  # the page has not heard of its kernel yet
        kernel_asked_for.click()


def wait_until_done(page: sync_api.Page, seconds: float) -> None:
    page.wait_for_function(f'() => ({DONE})() || document.querySelector("{FAILED}")', timeout=seconds * SECONDS)
    failed = page.locator(FAILED)
    assert failed.count() == 0, failed.first.inner_text()
    page.wait_for_selector(IDLE, timeout=30 * SECONDS)


def shot_of_cells(found: Tab, name: str) -> None:
    """The whole notebook as one tall picture: the window grows to its length."""
    page = found.page
    panel = page.locator(".jp-WindowedPanel-outer")
    height = panel.evaluate("panel => panel.scrollHeight")
    page.set_viewport_size({"width": 1280, "height": min(int(height) + 160, 12000)})
    page.wait_for_timeout(500)  # the panel is laid out anew
    panel.evaluate("panel => panel.scrollTo(0, 0)")
    page.wait_for_timeout(500)
    found.shot(name)


def test_notebook_03(browser: sync_api.Browser, lab: Lab, run: Path) -> None:
    with tab(browser) as found:
        open_and_run(found, lab, "03_vanishing_advantages.ipynb", {"run": str(run)})
        wait_until_done(found.page, 120)
        sizes = found.page.eval_on_selector_all(".jp-OutputArea-output img", SIZES)
        shot_of_cells(found, "notebook-03")
        assert len(sizes) == 6 and all(width > 300 and height > 100 for width, height in sizes)
        assert found.page.locator("[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
        assert found.complaints() == []


@pytest.mark.usefixtures("report")  # which the notebook links to
def test_notebook_08(browser: sync_api.Browser, lab: Lab, run: Path) -> None:
    with tab(browser) as found:
        open_and_run(found, lab, "08_reflection.ipynb", {"run": str(run)})
        wait_until_done(found.page, 120)
        sizes = found.page.eval_on_selector_all(".jp-OutputArea-output img", SIZES)
        shot_of_cells(found, "notebook-08")
        assert len(sizes) == 5 and all(width > 300 and height > 100 for width, height in sizes)
        assert found.complaints() == []


# What the live view shows now: where the run is, its figure, its newest responses.
LIVE = """() => {
  const head = document.querySelector('.rethinker-live');
  if (!head) return null;
  const pictures = [...head.closest('.jp-Cell').querySelectorAll('.jp-OutputArea-output img')];
  return [head.closest('.jp-OutputArea').innerText, ...pictures.map(image => image.src)].join('|');
}"""


def test_notebook_06(browser: sync_api.Browser, lab: Lab, tmp_path: Path) -> None:
    """Training is launched from the notebook, and the live view moves while it runs."""
    with tab(browser) as found:
        open_and_run(found, lab, "06_train.ipynb", {"runs_dir": str(tmp_path / "runs")})
        states: list[str] = []
        shown = False
        end = time.monotonic() + 400
        while time.monotonic() < end and not found.page.evaluate(DONE) and not found.page.locator(FAILED).count():
            now = found.page.evaluate(LIVE)
            if now and (not states or now != states[-1]):
                states.append(now)
                if "|" in now and not shown:  # with its first figure
                    shown = True
                    found.page.locator(".rethinker-live").first.scroll_into_view_if_needed()
                    found.shot("notebook-06-live")
            found.page.wait_for_timeout(250)
        wait_until_done(found.page, 60)
        sizes = found.page.eval_on_selector_all(".jp-OutputArea-output img", SIZES)
        shot_of_cells(found, "notebook-06")
        assert shown and len(states) >= 3, "the live view must change at least twice"
        assert sizes and all(width > 0 and height > 0 for width, height in sizes)
        assert found.complaints() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report(browser: sync_api.Browser, report: Path, scheme: str) -> None:
    with tab(browser, scheme=scheme) as found:
        found.page.goto(report.as_uri())
        sizes = found.page.eval_on_selector_all("figure img", SIZES)
        assert len(sizes) == len(FIGURES) and all(width > 300 and height > 100 for width, height in sizes)
        paper = found.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 23, 26)"}[scheme]
        # The picture for this scheme was taken: all figures are drawn on the page's own paper.
        pictures = found.page.eval_on_selector_all("figure img", "images => images.map(image => image.currentSrc)")
        sources = found.page.eval_on_selector_all("figure source", "items => items.map(item => item.srcset)")
        assert (pictures == sources) == (scheme == "dark")
        found.shot(f"report-{scheme}", whole=True)
        assert found.errors == []  # its content security policy forbids nothing that it needs


def test_report_on_a_phone(browser: sync_api.Browser, report: Path) -> None:
    with tab(browser, width=390, height=844) as found:
        found.page.goto(report.as_uri())
        wide = found.page.evaluate("() => document.documentElement.scrollWidth")
        found.shot("report-phone", whole=True)
        assert wide <= 390, "the page must not scroll sideways (its tables may)"


def test_comparison_page(browser: sync_api.Browser, tmp_path: Path) -> None:
    """In the dark and on a phone: the figure and the images of questions are there, and tables scroll by themselves."""
    write(find(demo_evaluations(tmp_path, items=12)), ["7b"], tmp_path / "comparison")
    with tab(browser, scheme="dark", width=390, height=844) as found:
        found.page.goto((tmp_path / "comparison" / "comparison.html").as_uri())
        assert len(found.page.query_selector_all("figure img")) == 1
        sizes = found.page.eval_on_selector_all("img", SIZES)
        assert len(sizes) > 4 and all(width > 50 and height > 50 for width, height in sizes)
        wide = found.page.evaluate("() => document.documentElement.scrollWidth")
        found.shot("comparison-phone", whole=True)
        assert wide <= 390
        assert found.errors == []
