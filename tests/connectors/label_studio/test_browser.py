"""People at work in a real browser: the labelling page and the page of live progress."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from chromium import chromium
from tiny_encoder import save_encoder

from loop.campaign.store import Store
from loop.cli import __main__ as cli

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[3]
SHOTS = os.environ.get("GOLDLOOP_SCREENSHOTS")  # a folder to keep the screenshots in
RUNS = "<script>window.ranScript = 1</script><img src=x onerror='window.ranScript = 2'>"

CAMPAIGN = f"""\
[campaign]
name = "browser"
task = "Is the review positive or negative? {RUNS}"

[[labels]]
name = "positive {RUNS}"
description = "The reviewer recommends it. {RUNS}"
[[labels]]
name = "negative"
description = "The reviewer does not."

[texts]
source = "t.csv"
gold_column = "gold"
test_frac = 0.2

[annotator]
kind = "recorded"
columns = ["llm"]
prob_columns = ["probs"]

[strategy]
signals = ["margin"]

[budget]
labels = 8

[rounds]
rounds = 1
batch_size = 8
audit_frac = 0.0

[student]
encoder = "./encoder"
seeds = 2
epochs = 1
if_nothing_learned = "go on"
references = []

[label_studio]
url = "URL"
"""
POSITIVE = f"positive {RUNS}"
ENTER, SPACE = "\ue007", " "


@pytest.fixture
def browser(tmp_path):
    """A Chromium that reaches nothing but this machine."""
    with chromium(tmp_path / "profile") as driver:
        yield driver


def write_campaign(folder, url, rounds=1):
    rows = []
    for i in range(20):
        sure = 0.5 + 0.02 * i  # the first is the most suspect
        text = f"Review number {i}: it was {'great' if i % 2 else 'poor'}. {RUNS}"
        llm = POSITIVE if i % 2 else "negative"
        rows.append([text, llm, llm, sure])
    with (folder / "t.csv").open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([["text", "gold", "llm", "probs"], *rows])
    text = CAMPAIGN.replace("URL", url).replace("rounds = 1", f"rounds = {rounds}")
    text = text.replace("labels = 8", f"labels = {8 * rounds}")
    (folder / "goldloop.toml").write_text(text, encoding="utf-8")
    save_encoder(folder / "encoder")


def wait_for(find, timeout_s=60):
    """What ``find`` returns once it is true; its exceptions count as not yet."""
    from selenium.common.exceptions import WebDriverException

    end = time.monotonic() + timeout_s
    while True:
        try:
            if found := find():
                return found
        except WebDriverException:
            pass
        if time.monotonic() > end:
            raise AssertionError("the page did not come to what was waited for")
        time.sleep(0.2)


class Page:
    """The labelling page as a person uses it."""

    def __init__(self, browser, server):
        self.browser, self.server = browser, server

    def log_in(self):
        from selenium.webdriver.common.by import By

        self.browser.get(f"{self.server.url}/user/login/")
        wait_for(lambda: self.browser.find_element(By.NAME, "email")).send_keys(
            self.server.username
        )
        self.browser.find_element(By.NAME, "password").send_keys(self.server.password)
        self.browser.find_element(By.CSS_SELECTOR, "button[type=submit]").click()
        wait_for(lambda: "/user/login" not in self.browser.current_url)

    def number(self):
        """The number of the review that is shown, or None."""
        found = re.search(r"Review number (\d+)", self.text())
        return int(found[1]) if found else None

    def text(self):
        from selenium.webdriver.common.by import By

        return self.browser.find_element(By.TAG_NAME, "body").text

    def key(self, key):
        from selenium.webdriver import ActionChains

        ActionChains(self.browser).send_keys(key).perform()

    def press(self, *names):
        """Clicks the first button of one of these names."""
        from selenium.webdriver.common.by import By

        def button():
            for found in self.browser.find_elements(By.TAG_NAME, "button"):
                said = f"{found.text} {found.get_attribute('aria-label') or ''}".lower()
                if any(name in said for name in names) and found.is_displayed():
                    return found
            return None

        def pressed():  # a passing message may lie over it for a while
            found = button()
            if found is not None:
                found.click()
            return found is not None

        wait_for(pressed)

    def chosen(self):
        from selenium.webdriver.common.by import By

        boxes = self.browser.find_elements(
            By.CSS_SELECTOR, ".lsf-choice input, label.ant-checkbox-wrapper input, .ant-radio-input"
        )
        return [box.is_selected() for box in boxes]

    def sees(self, selector):
        """The elements of a kind that are in sight."""
        from selenium.webdriver.common.by import By

        found = self.browser.find_elements(By.CSS_SELECTOR, selector)
        return [element for element in found if element.is_displayed()]

    def ran(self):
        return self.browser.execute_script("return window.ranScript || null")

    def shoot(self, name):
        if SHOTS:
            Path(SHOTS).mkdir(parents=True, exist_ok=True)
            self.browser.save_screenshot(str(Path(SHOTS) / f"{name}.png"))


def start(folder, server, *args):
    return subprocess.Popen(
        [sys.executable, "-m", "loop.cli.__main__", *args],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "LABEL_STUDIO_API_KEY": server.token},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def finish(label_studio, tmp_path, monkeypatch, capsys):
    """Runs a command to its end in this process, which has the imports behind it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", label_studio.token)
    monkeypatch.setattr("loop.student.encoder_student.cores", lambda: 1)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["goldloop", *args])
        code = None
        try:
            cli.main()
        except SystemExit as exc:
            code = exc.code
        out = capsys.readouterr()
        assert not code, out.err
        return out.out + out.err

    return run


def answers(store):
    """Review number -> (label, skipped, note) of the answers that stand."""
    items = {i.id: int(re.search(r"number (\d+)", i.text)[1]) for i in store.items("browser")}
    return {items[a.item_id]: (a.label, a.skipped, a.note) for a in store.annotations("browser")}


def test_a_person_labels_skips_and_corrects(label_studio, browser, finish, tmp_path):
    write_campaign(tmp_path, label_studio.url, rounds=2)
    said = finish("run")
    url = re.search(r"label at (\S+)", said)[1]
    store = Store(f"sqlite:///{tmp_path / 'browser.db'}")
    items = {i.id: int(re.search(r"number (\d+)", i.text)[1]) for i in store.items("browser")}
    order = [items[r.item_id] for r in store.reviews("browser")]
    page = Page(browser, label_studio)
    page.log_in()
    browser.get(url)
    wait_for(lambda: page.number() is not None)
    assert page.number() == order[0]
    assert not any(page.chosen())  # blind: nothing is ticked
    assert "Text 1 of 8 in round 1" in page.text()
    assert [box.text for box in page.sees(".gl-choice kbd")] == ["1", "2", "0"]
    assert f"The reviewer recommends it. {RUNS}" in page.text()
    assert page.sees(".lsf-bottombar")
    assert not page.sees(".lsf-sidepanels__wrapper")
    page.shoot("labelling")

    page.key("1")
    wait_for(lambda: any(page.chosen()))
    page.shoot("labelling-chosen")
    page.key(SPACE)  # two keys for a text
    wait_for(lambda: page.number() == order[1])
    page.press("skip")
    wait_for(lambda: page.number() == order[2])
    page.key("2")
    wait_for(lambda: any(page.chosen()))
    page.press("submit")
    wait_for(lambda: page.number() == order[3])
    page.key("0")
    wait_for(lambda: any(page.chosen()))
    page.key(ENTER)
    wait_for(lambda: page.number() == order[4])
    browser.set_window_size(390, 844)
    narrow = "return [document.documentElement.scrollWidth, window.innerWidth]"
    wait_for(lambda: len(set(browser.execute_script(narrow))) == 1)  # nothing sticks out
    page.shoot("labelling-phone")
    assert page.ran() is None
    browser.set_window_size(1280, 900)
    browser.get(url.replace("&labeling=1", ""))
    wait_for(lambda: POSITIVE in page.text())  # the answer, beside its text
    page.shoot("data-manager")
    for column in ("Completed", "Annotated by", "Annotation results"):
        assert column in page.text()
    for column in ("Inner ID", "Updated at", "ext_id", "Lead Time"):
        assert column not in page.text()

    finish("pull")
    assert answers(store) == {
        order[0]: (POSITIVE, False, ""),
        order[1]: (None, True, ""),
        order[2]: ("negative", False, ""),
        order[3]: (None, False, ""),
    }

    # The first answer is corrected.
    first = next(r for r in store.reviews("browser") if items[r.item_id] == order[0])
    browser.get(re.sub(r"\?.*", f"?task={first.task_id}", url))
    wait_for(lambda: page.number() == order[0] and any(page.chosen()))
    page.key("2")
    page.press("update")
    with httpx.Client(headers={"Authorization": f"Token {label_studio.token}"}) as api:

        def corrected():
            task = api.get(f"{label_studio.url}/api/tasks/{first.task_id}/").json()
            return "negative" in json.dumps(task["annotations"])

        wait_for(corrected)
    assert page.ran() is None
    finish("pull")
    assert answers(store)[order[0]] == ("negative", False, "")

    # Round 2 is opened while texts of round 1 are still out: its address shows its own first.
    said = finish("run", "--close")
    second = re.findall(r"label at (\S+)", said)[-1]
    assert second != url
    reviews = store.reviews("browser")
    assert any(r.closed_at is None and r.item_id in set(items) for r in reviews[:8])
    newest = [items[r.item_id] for r in reviews[8:]]
    assert len(newest) == 8
    browser.get(second)
    wait_for(lambda: page.number() is not None)
    for number in newest[:2]:
        wait_for(lambda number=number: page.number() == number)
        page.key("2")
        wait_for(lambda: any(page.chosen()))
        page.press("submit")
    wait_for(lambda: page.number() == newest[2])
    store.close()


def test_the_server_pulls_when_somebody_answers_and_its_page_shows_it(
    label_studio, browser, finish, tmp_path
):
    write_campaign(tmp_path, label_studio.url)
    finish("run")
    store = Store(f"sqlite:///{tmp_path / 'browser.db'}")
    server = start(tmp_path, label_studio, "serve", "--connect")
    try:
        url = server.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        seen = []
        for line in server.stderr:
            seen.append(line)
            if "Connected" in line or line.startswith("Error"):
                break
        assert "Connected" in seen[-1], seen
        state = json.loads((tmp_path / "browser.db.browser.serve.json").read_text())
        assert state["page_token"] not in "".join(seen)
        tasks = [r.task_id for r in store.reviews("browser")]
        result = [
            {
                "from_name": "label",
                "to_name": "text",
                "type": "choices",
                "value": {"choices": ["negative"]},
            },
            {
                "from_name": "note",
                "to_name": "text",
                "type": "textarea",
                "value": {"text": [RUNS]},
            },
        ]
        with httpx.Client(headers={"Authorization": f"Token {label_studio.token}"}) as api:
            for task in tasks[:6]:
                api.post(
                    f"{label_studio.url}/api/tasks/{task}/annotations/",
                    json={"result": result, "lead_time": 3.5},
                ).raise_for_status()
            hooks = api.get(f"{label_studio.url}/api/webhooks/").json()
            assert sum(hook["url"] == f"{url}/webhook" for hook in hooks) == 1
        wait_for(lambda: len(store.annotations("browser")) == 6, 30)
        page = Page(browser, label_studio)
        browser.get(url)
        from selenium.webdriver.common.by import By

        page.shoot("progress-login")
        browser.find_element(By.NAME, "token").send_keys(state["page_token"])
        browser.find_element(By.CSS_SELECTOR, "button").click()
        wait_for(lambda: "6 of 8 texts" in page.text())
        page.shoot("progress")
        assert page.ran() is None
        assert "admin@goldloop.local" in page.text()
        told = [line["message"] for line in browser.get_log("browser")]
        assert all("401" in line for line in told), told  # the policy had nothing to refuse
        page.log_in()  # and the note of a labelled task is text as well
        project = next(hook["project"] for hook in hooks if hook["url"] == f"{url}/webhook")
        browser.get(f"{label_studio.url}/projects/{project}/data?task={tasks[0]}")
        wait_for(lambda: page.text().count("window.ranScript") >= 4)
        page.shoot("labelled-with-note")
        assert page.ran() is None
    finally:
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=60)
    assert state["secret"] not in out + err
    assert "Traceback" not in err
    store.close()
