"""A real JupyterLab on loopback, and headless Chromium that may talk to nothing else."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from notebook_driver import ARTIFACTS, Lab
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
CHROMIUM = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
START_S = 60


def _chromium() -> str:
    """Where Chromium is; without one the test is skipped, unless it is required."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        missing = "no Chromium on this machine: install it (Debian: apt-get install chromium) to run the browser tests"
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail(missing)
        pytest.skip(missing)
    return found


@pytest.fixture
def lab(tmp_path):
    """JupyterLab over a copy of the notebooks and samples, with settings of its own."""
    folder = tmp_path
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    shutil.copytree(ROOT / "sample_models", folder / "sample_models")
    settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    environment = {
        **os.environ,
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "ONNX_EXPLORER_CACHE": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", "")))),
    }
    command = [
        sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--expose-app-in-browser",
        "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
        f"--ServerApp.token={token}", f"--ServerApp.root_dir={folder}",
    ]  # fmt: skip
    ARTIFACTS.mkdir(exist_ok=True)
    with (ARTIFACTS / "jupyterlab.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until_it_answers(f"http://127.0.0.1:{port}/api", server)
            yield Lab(f"http://127.0.0.1:{port}", token, folder)
        finally:
            server.terminate()
            server.wait(30)


def _wait_until_it_answers(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.URLError:
            time.sleep(0.1)  # nothing to wait on before the socket is there
    pytest.fail(f"JupyterLab did not start within {START_S} s; see {ARTIFACTS / 'jupyterlab.log'}")


@pytest.fixture
def page(lab):
    """A page that fails the test on any console error and any request that leaves loopback."""
    troubles: list[str] = []
    with sync_playwright() as playwright:
        found = _chromium()
        browser = playwright.chromium.launch(executable_path=found, args=CHROMIUM)
        page = browser.new_page(viewport={"width": 1400, "height": 2200})
        page.set_default_timeout(60_000)
        page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: troubles.append(request.url) if _leaves(request.url, lab.url) else None)
        try:
            yield page
        finally:
            page.screenshot(path=ARTIFACTS / "last.png")
            browser.close()
    assert not troubles


def _leaves(url: str, home: str) -> bool:
    return not url.startswith((home, home.replace("http", "ws"), "data:", "blob:"))
