"""The report in a real browser: nothing bars anybody, nothing is cut on a phone or on paper."""

import os
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from chromium import chromium, serious_findings

from loop.campaign.metrics import Calibration, LlmQuality, Metric, Reliability, ToGoal
from loop.people.person import Person, Rate
from loop.report.contents import CaughtError, ClassRow, Methods, People, ReportRow, Verdict
from loop.report.html import render
from tests.loop.report.test_html import EMPTY, EVIL, FULL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SHOTS = os.environ.get("GOLDLOOP_SCREENSHOTS")  # a folder to keep the screenshots in
HEBREW = "הטקסט הזה נכתב מימין לשמאל ויש בו גם English באמצע. "
BARS = Reliability(0.05, 0.7, ((0.6, 0.5, 40), (0.8, 0.7, 60), (1.0, 0.9, 100)))
VERDICT = Verdict(
    "78 % (72 to 83 %) of the LLM's labels are right; about 144 of 900 are still wrong.",
    "The 207 labels from people made the students better; that they are more stable is not shown.",
    "For at most 5 % wrong labels, people must label about 278 more texts (55 to 535).",
    "Next: `goldloop export labels.csv`.",
)
WHOLE = replace(
    FULL,
    verdict=VERDICT,
    votes=BARS,
    calibration=Calibration("batch", "A reason", 60, BARS, BARS),
    overruled=54,
    caught=tuple(
        CaughtError(text, "negative", EVIL, 3, reason, "learned_error", 0.97)
        for text, reason in (
            ("word " * 60, "suspect"),
            (HEBREW * 4, "audit"),
            (EVIL * 3, "suspect"),
        )
    ),
    to_goal=ToGoal(0.05, False, Metric(278, 55, 535), Metric(77, 15, 149)),
    people=People(
        Metric(0.7),
        720,
        3,
        3,
        (
            Person(
                "Åsa " + "x" * 70, 9, 8, 1, 0, {}, Rate.of(7, 8), None, 0.9, 0.5, 7.1, 0, ("slow",)
            ),
        ),
    ),
    methods=Methods("A pool of 900 texts [1]. " * 20, ("Efron, B. (1979).",)),
)
K = 100  # labels of the largest page; the time that axe takes grows faster than their number
NAMES = tuple(
    f"label {i} " + ("שלום" if i % 3 else "antidisestablishmentarianism") for i in range(K)
)
MANY = replace(
    EMPTY,
    labels=NAMES,
    task=HEBREW,
    rows=(
        ReportRow(
            "loop",
            1,
            10,
            per_class=tuple(ClassRow(name, Metric(0.5), n=3) for name in NAMES),
            confusion=tuple(
                tuple(0.003 if i == j else 0.001 * ((i + j) % 97 == 0) for j in range(K))
                for i in range(K)
            ),
        ),
    ),
    llm=LlmQuality(
        accuracy=Metric(0.7, 0.6, 0.8),
        recall=(None,) * K,
        precision=(None,) * K,
        class_share=(Metric(1 / K),) * K,
    ),
)
WIDE_AT_390 = """
return [...document.querySelectorAll('main *')].filter(e => {
  const box = e.getBoundingClientRect();
  return box.width && box.right > 391 && !e.closest('.confusion, .scroll, svg');
}).map(e => e.outerHTML.slice(0, 120));
"""
SCROLLS = """
return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1)
  .filter(e => e.querySelector('table.stack')).map(e => e.getAttribute('aria-label'));
"""
CLOSED_PARTS = """
return [...document.querySelectorAll('details:not([open])')].map(
  e => [...e.children].slice(1).every(c => c.getBoundingClientRect().height > 0)
    && e.getBoundingClientRect().height);
"""


def media(browser, scheme, kind="screen"):
    wanted = {"media": kind, "features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)


def size(browser, width):
    wanted = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", wanted)


def kept(browser, name):
    if SHOTS:
        size_of = browser.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        browser.set_window_size(size_of["width"], size_of["height"])
        browser.save_screenshot(str(Path(SHOTS) / f"{name}.png"))


def test_nothing_bars_anybody_and_nothing_is_cut(tmp_path):
    with chromium(tmp_path / "profile") as browser:
        for name, view in (("whole", WHOLE), ("empty", EMPTY), ("many", MANY)):
            page = tmp_path / f"{name}.html"
            page.write_text(render(view), encoding="utf-8")
            browser.get(page.as_uri())
            media(browser, "light", "print")
            size(browser, 700)  # A4 without its margins
            assert all(browser.execute_script(CLOSED_PARTS)), name
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 700
            browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = 1)")
            every = list(product((1280, 390), ("light", "dark")))
            for width, scheme in every if name == "whole" else (every[0], every[-1]):
                size(browser, width)
                media(browser, scheme)
                assert serious_findings(browser) == [], (name, width, scheme)
                kept(browser, f"report-{name}-{width}-{scheme}")
            assert browser.execute_script(WIDE_AT_390) == [], name
            assert browser.execute_script(SCROLLS) == [], name
            assert browser.execute_script("return innerWidth") == 390, name
            assert browser.execute_script("return window.ranScript") is None
        browser.get("data:text/html,<title>t</title><main><h1>h</h1><button></button></main>")
        assert [rule for rule, *_ in serious_findings(browser)] == [
            "button-name",
            "html-has-lang",
        ]
