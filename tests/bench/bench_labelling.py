"""How many keys and seconds a person needs for 20 texts on the labelling page, in a real browser.

A robot stands in for the person: it knows every answer, so reading and thinking take no time, and
each key takes 0.2 s (a good typist's keystroke, Card, Moran & Newell 1980). What is left is what
the page itself asks for: keys, and waiting for the next text.

    python tests/bench/bench_labelling.py [--texts 20]
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from connectors.label_studio import server as label_studio_server
from connectors.label_studio.reviewer import LabelStudioReviewer
from loop.ports import ReviewTask
from loop.prompt import Label
from tests.connectors.label_studio.test_browser import Page, chromium, wait_for

KEY_S = 0.2
LABELS = [Label("positive", "recommends it"), Label("negative", "warns of it")]
WAYS = {"digit, Ctrl+Enter": ("1", "ctrl", "enter"), "digit, Space": ("1", "space")}


def press(page: Page, keys: tuple[str, ...]) -> None:
    """Presses the keys, a modifier together with the one after it."""
    from selenium.webdriver import ActionChains, Keys

    actions = ActionChains(page.browser)
    named = {"enter": Keys.ENTER, "space": Keys.SPACE}
    held = False
    for key in keys:
        actions.pause(KEY_S)
        if key == "ctrl":
            actions.key_down(Keys.CONTROL)
            held = True
        else:
            actions.send_keys(named.get(key, key))
    if held:
        actions.key_up(Keys.CONTROL)
    actions.perform()


def label_all(page: Page, server: label_studio_server.ServerInfo, keys: tuple[str, ...], n: int):
    """Seconds for n texts, from the first shown to the last submitted."""
    reviewer = LabelStudioReviewer(
        server.url,
        server.token,
        project_title="bench",
        campaign_id=f"bench-{time.time_ns()}",
        labels=LABELS,
        task="Which?",
    )
    reviewer.open_project(None)
    reviewer.send(
        [ReviewTask(f"i{k:03d}", f"Review number {k}: fine.", 1, k, "", "", 0.0) for k in range(n)]
    )
    page.browser.get(reviewer.url())
    wait_for(lambda: page.number() == 0)
    start = time.perf_counter()
    for k in range(n):
        press(page, keys)
        if k + 1 < n:
            wait_for(lambda k=k: page.number() == k + 1)
        else:
            wait_for(lambda: re.search("completed|No more", page.text()))
    seconds = time.perf_counter() - start
    answers = [a.label for t in reviewer.fetch(None).tasks for a in t.annotations]
    assert answers == ["positive"] * n, answers
    reviewer.delete_project()
    return seconds


def main() -> None:
    """Prints a row for each way."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=20)
    n = parser.parse_args().texts
    with tempfile.TemporaryDirectory() as folder:
        server = label_studio_server.up(data_dir=Path(folder) / "server")
        browser = chromium(Path(folder) / "profile")
        try:
            page = Page(browser, server)
            page.log_in()
            for way, keys in WAYS.items():
                seconds = label_all(page, server, keys, n)
                print(f"{way:20s}{len(keys) * n:6d} keys{seconds:8.1f} s", flush=True)
        finally:
            browser.quit()
            label_studio_server.down(data_dir=Path(folder) / "server")


if __name__ == "__main__":
    main()
