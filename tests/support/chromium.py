"""A Chromium without a window that reaches nothing but this machine, and axe for its pages."""

import importlib.util
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

BINARIES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--window-size=1280,900",
)


@contextmanager
def chromium(profile: Path):
    """The browser; the test is skipped where it or its driver is not installed."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    binary = next(filter(None, map(shutil.which, BINARIES)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    browser.set_page_load_timeout(120)
    try:
        yield browser
    finally:
        browser.quit()


def serious_findings(browser):
    """What axe holds to be serious or critical on the page: rule, what it means, where."""
    spec = importlib.util.find_spec("axe_core_python")
    if spec is None:
        pytest.skip("axe-core-python is not installed")
    script = Path(spec.submodule_search_locations[0]) / "axe.min.js"
    if not browser.execute_script("return typeof window.axe === 'object'"):
        browser.execute_script(script.read_text(encoding="utf-8"))
    ran = browser.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "axe.run().then(done, error => done({error: String(error)}))"
    )
    assert "error" not in ran, ran
    assert ran["passes"], "axe looked at nothing"
    return [
        (finding["id"], finding["help"], [node["html"] for node in finding["nodes"][:3]])
        for finding in ran["violations"]
        if finding["impact"] in ("serious", "critical")
    ]
