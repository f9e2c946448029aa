"""Use `customttt ui` in a real browser: `python tests/browser_ui.py --out FOLDER`, with gradio, playwright, a Chromium.

It starts the page on a base with random weights, drops pictures and a clip, some with hostile names, learns, stops,
goes on, looks on from a second tab, composes, renames, exports, imports and removes; and takes screenshots at 1,400
and 400 pixels, light and dark. On real weights: `--base tiny --pictures FOLDER --clip FILE --steps 60`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bases import build_tiny_random
from browser import HOSTILE, check
from material import make_clip, make_pictures
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from customttt import backbones, media
from customttt.library import Library
from customttt.ui.studio import FRAMES_OF_STRIP

START = """
from customttt import workshop
workshop.GLANCE_SECONDS = 2.0
from customttt_cli.__main__ import main
main()
"""
TEMPLATES = "{{7*7}} ${7*7}"
PATIENCE = 900_000


@dataclass(frozen=True)
class Material:
    """What is learned from, on what and how long."""

    base: str
    files: list[Path]
    clip: Path
    steps: int

    @property
    def taken(self) -> tuple[str, str]:
        """What the page says of pictures and of the clip."""
        sample = backbones.defaults(self.base).sample
        pictures = sum(one.suffix not in (".md", ".txt") for one in self.files)
        height, width = sample.sides
        return f"Taken: {pictures} pictures of {width} x {height}.", f"Taken: {sample.num_frames} frames"


@contextmanager
def running(out: Path, base: str) -> Iterator[str]:
    """The page, in a process of its own; its address."""
    environment = {**os.environ, "CUSTOMTTT_HOME": str(out / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", START, "ui", "--base", base, "--output", str(out / "videos")]
    with (out / "said.txt").open("w") as said:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, env=environment, text=True)
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.send_signal(signal.SIGTERM)
            check(server.wait(60) == 128 + signal.SIGTERM, "the page ends by SIGTERM")


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).filter(visible=True).click()


def choose(page: Page, field: str, value: str) -> None:
    page.locator(f"#{field} input").click()
    page.get_by_role("option", name=value, exact=True).click()


def told(page: Page, where: str, words: str) -> Locator:
    found = page.locator(f"#{where}", has_text=words)
    found.wait_for(timeout=60_000)
    return found


def card(page: Page, words: str, state: str) -> Locator:
    found = page.locator(f"#tasks article.ct-{state}", has_text=words).first
    found.wait_for(timeout=PATIENCE)
    return found


def learn(page: Page, kind: str, name: str, steps: int) -> None:
    page.get_by_label("What to call the").filter(visible=True).fill(name)
    if not page.get_by_label("Steps; empty").filter(visible=True).count():
        page.get_by_text("More", exact=True).filter(visible=True).click()
    page.get_by_label("Steps; empty").filter(visible=True).fill(str(steps))
    page.locator(f"#learn-{kind}").click()


def subjects(page: Page, what: Material) -> None:
    """Drop pictures, refuse names and numbers, learn, stop, go on."""
    page.set_input_files("#files-appearance input[type=file]", [str(one) for one in what.files])
    told(page, "taken-appearance", what.taken[0])
    check(f" {page.locator('#taken-appearance img').count()} pictures" in what.taken[0], "each is shown as it is taken")
    check(page.get_by_text("onerror").count() > 0, "a hostile file name and caption are text")
    told(page, "taken-appearance", "notes.md (")
    check(True, "what is no picture is named")
    for name in ("../x", HOSTILE):
        learn(page, "appearance", name, what.steps)
        told(page, "told-appearance", f"{name[:4]}").filter(has_text="cannot be a concept's name").wait_for()
    check(True, "../x and an element are no names")
    page.get_by_label("Learning rate").filter(visible=True).fill("nan")
    learn(page, "appearance", "koala", what.steps)
    told(page, "told-appearance", "The learning rate cannot be 'nan'; give a number")
    page.get_by_label("Learning rate").filter(visible=True).fill("")
    check(True, "nan is no number")
    page.get_by_label("Noun, if").fill(f"koala {HOSTILE} {TEMPLATES}")
    learn(page, "appearance", "koala", what.steps)
    card(page, "'koala'", "running")
    page.locator("#tasks polyline").first.wait_for(timeout=PATIENCE)
    page.locator("#made img").first.wait_for(timeout=PATIENCE)
    check(True, "a curve of losses and a preview while it learns")
    page.locator("#tasks button", has_text="Stop").click()
    at = card(page, "'koala'", "stopped").locator("p").first.inner_text()
    check(f"of {what.steps}" in at and f"step {what.steps} " not in at, f"stopped: {at}")


def movements(page: Page, what: Material) -> None:
    tab(page, "Learn a movement")
    page.set_input_files("#files-motion input[type=file]", str(what.clip))
    told(page, "part-motion", what.taken[1])
    strip = media.count_frames(what.clip, FRAMES_OF_STRIP)
    check(page.locator("#taken-motion img").count() == strip, f"{strip} frames of the film strip")
    start = page.get_by_label("number input for Start")
    start.fill("0.5")
    start.press("Tab")
    page.locator("#taken-motion .ct-out").first.wait_for(timeout=60_000)
    check(page.locator("#taken-motion .ct-out").count() >= 1, "what lies before the start is pale")
    start.fill("0")  # the clip may be no longer than the base's
    start.press("Tab")
    page.locator("#taken-motion .ct-out").first.wait_for(state="detached", timeout=60_000)
    learn(page, "motion", "swimming", what.steps if what.base == "tiny" else 4)


def look_on(browser: Browser, at: str) -> None:
    """A second tab sees the same desk, and goes on with what was stopped; then it is closed."""
    page = browser.new_page()
    page.goto(at)
    card(page, "'koala'", "stopped").locator("button").click()
    card(page, "'koala'", "running")
    page.close()


def composing(page: Page) -> None:
    tab(page, "Compose")
    choose(page, "appearance", "koala")
    choose(page, "motion", "swimming")
    page.locator("#then input, #then textarea").fill("swimming")
    page.locator("#compose").click()
    told(page, "told-compose", "'swimming' is a motion twice")
    page.locator("#then input, #then textarea").fill("")
    page.locator("#prompt textarea").fill(f"on {HOSTILE} {TEMPLATES}")
    page.locator("#compose").click()
    told(page, "told-compose", "The prompt has {7*7}, which is nothing in this video")
    page.locator("#prompt textarea").fill(f"on {HOSTILE}")
    page.locator("#number input[type=number]").fill("3")
    page.locator("#number input[type=number]").press("Tab")
    page.locator("#compose").click()
    card(page, "is swimming", "done")
    playing = "[...document.querySelectorAll('#made video')].filter(v => v.readyState > 1 && !v.paused).length >= 3"
    page.locator("#made video").first.scroll_into_view_if_needed()
    page.wait_for_function(playing, timeout=60_000)
    check(True, "three videos play side by side")
    check(page.get_by_text(TEMPLATES).count() > 0, "templates are text")


def house(page: Page, out: Path) -> None:
    tab(page, "Library")
    page.locator("#library article", has_text="koala").first.wait_for(timeout=60_000)
    check(page.locator("#library article").count() == 2, "two concepts in the library")
    check(page.locator("#library video").count() == 1, "a video of the motion")
    choose(page, "chosen", "koala")
    page.locator("#new-name input, #new-name textarea").fill("../x")
    press(page, "Rename")
    told(page, "told-library", "cannot be a concept's name")
    page.locator("#new-name input, #new-name textarea").fill("bear")
    press(page, "Rename")
    told(page, "told-library", "'koala' is 'bear' now.")
    choose(page, "chosen", "bear")
    press(page, "Export")
    told(page, "told-library", "Exported 'bear'.")
    link = page.locator("#exported a").first.get_attribute("href") or ""
    (out / "bear.customttt").write_bytes(page.request.get(link).body())
    press(page, "Remove ...")
    told(page, "told-library", "Exported")
    page.get_by_text("Remove 'bear' for good?").wait_for()
    check(len(Library(out / "home").concepts()) == 2, "nothing is removed before it is agreed to")
    choose(page, "chosen", "swimming")
    page.get_by_text("Remove 'bear' for good?").wait_for(state="hidden")
    check(True, "another choice takes the question back")
    choose(page, "chosen", "bear")
    press(page, "Remove ...")
    press(page, "Remove for good")
    told(page, "told-library", "'bear' was removed.")
    check([one.name for one in Library(out / "home").concepts()] == ["swimming"], "and nothing else")
    page.set_input_files("#import-file input[type=file]", str(out / "bear.customttt"))
    page.locator("#import-file", has_text="bear").first.wait_for()
    press(page, "Import")
    told(page, "told-library", "Imported the appearance 'bear'.")


def screenshots(browser: Browser, at: str, out: Path, what: Material) -> None:
    for width in (1400, 400):
        for scheme in ("light", "dark"):
            page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()  # type: ignore[arg-type]
            page.goto(at)
            page.set_input_files("#files-appearance input[type=file]", [str(one) for one in what.files])
            page.locator("#taken-appearance img").first.wait_for(timeout=60_000)
            for name in ("Learn a subject", "Learn a movement", "Compose", "Library"):
                if page.get_by_role("tab", name=name).filter(visible=True).count():
                    tab(page, name)
                else:
                    page.locator(".overflow-menu button").first.click()
                    page.locator(".overflow-dropdown button", has_text=name).click()
                if name == "Learn a movement":
                    page.set_input_files("#files-motion input[type=file]", str(what.clip))
                    page.locator("#part-motion img").first.wait_for(timeout=60_000)
                page.wait_for_timeout(1500)
                page.screenshot(path=out / f"{name.split()[-1]}-{width}-{scheme}.png", full_page=True)
                wide = page.evaluate("document.documentElement.scrollWidth")
                check(wide <= width, f"{name} {width} {scheme}: nothing sticks out ({wide})")
            page.context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--base", help="by default one with random weights, in the new folder")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--clip", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args()
    out = given.out.absolute()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    base = given.base or str(build_tiny_random(out / "base"))
    folder = shutil.copytree(given.pictures, out / "imgs") if given.pictures else make_pictures(out / "imgs", 4)
    first = min(folder.iterdir())
    first.rename(folder / f"<img src=x onerror=alert(1)>{first.suffix}")
    (folder / max(folder.iterdir()).with_suffix(".txt")).write_text(f"A koala {HOSTILE} {TEMPLATES}\n")
    (folder / "notes.md").write_text("No picture.\n")
    what = Material(base, sorted(folder.iterdir()), given.clip or make_clip(out / "clip.mp4", 24), given.steps)
    with sync_playwright() as playwright, running(out, base) as at:
        browser = playwright.chromium.launch(executable_path=given.chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        asked: list[str] = []
        wrong: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.goto(at)
        page.locator("#learn-appearance").wait_for(timeout=90_000)
        subjects(page, what)
        movements(page, what)
        look_on(browser, at)
        card(page, "'koala'", "done")
        card(page, "'swimming'", "done")
        losses = Library(out / "home").get("koala").losses
        check(len(losses) == what.steps, "stopped and gone on from another tab, which was closed, it is learned whole")
        composing(page)
        house(page, out)
        check(page.title() == "customttt", "no name has become a script")
        check(page.locator("img[src=x]").count() == 0, "nor an element")
        screenshots(browser, at, out, what)
        strangers = [url for url in asked if not url.startswith((at, "data:", "blob:"))]
        check(not strangers, f"nothing is asked of anyone else {strangers}")
        check(not wrong, f"no error: {wrong}")
        browser.close()


if __name__ == "__main__":
    main()
