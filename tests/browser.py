"""Look at the gallery in a real browser: `python tests/browser.py --out FOLDER`, with playwright and a Chromium there.

It makes a grid's folder of videos, some with hostile names, opens the page from the file and from a web server, plays,
filters, compares, and takes screenshots at 1,400 and 400 pixels, light and dark. It needs no model.
"""

from __future__ import annotations

import argparse
import http.server
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Page, sync_playwright

from customttt import media
from customttt.config import SampleConfig, TTTConfig
from customttt.many import gallery
from customttt.recipe import Ingredient, VideoRecipe
from customttt_cli import showing

HOSTILE = "<img src=x onerror=document.title='owned'>"
APPEARANCES, MOTIONS, PROMPTS = ["koala", "dog", HOSTILE, "../x"], ["swimming", "diving", "flying"], ["on Mars", ""]


def lines(recipe: VideoRecipe) -> list[tuple[str, str]]:
    return showing.pairs_of(showing.recipe_lines(recipe, {}))


def recipe(appearance: str, motion: str, prompt: str, seed: int) -> VideoRecipe:
    return VideoRecipe(
        Ingredient(appearance, appearance, "a" * 64), Ingredient(motion, motion, "b" * 64), prompt, "tiny", "f00d",
        TTTConfig(), SampleConfig(size=128, num_frames=8), seed,
    )  # fmt: skip


def frames(seed: int) -> np.ndarray[Any, Any]:
    """A square whose place tells the frame: x is 12 times its number."""
    made = np.full((8, 128, 128, 3), 40 + 25 * (seed % 8), np.uint8)
    for index in range(8):
        made[index, 40:88, 12 * index : 12 * index + 32] = (240, 200, 60)
    return made


def build(folder: Path, copies: int = 0) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    number = 0
    for appearance in APPEARANCES:
        for motion in MOTIONS:
            for prompt in PROMPTS:
                for seed in range(2):
                    name = f"{number} <img src=x onerror=alert(1)> ' \" # %41.mp4" if number == 0 else f"{number}.mp4"
                    made = recipe(appearance, motion, prompt, seed)
                    media.write_video(folder / name, frames(number), 8, made.to_dict())
                    number += 1
    rows = [{"what": "CLIP-T", "by": "CLIP", "videos": {f"{one}.mp4": 0.2 + one / 1000 for one in range(1, number)}}]
    (folder / "scores.json").write_text(json.dumps(rows))
    bad = [{"job": f"{HOSTILE} diving", "state": "failed", "why": "The loss is <b>nan</b>."}]
    (folder / "grid.json").write_text(json.dumps({"not done": bad}))
    found = gallery.collect(folder)
    if copies:  # many tiles, few files
        many = [replace(one, recipe=one.recipe.with_seed(seed)) for seed in range(copies) for one in found.videos[::2]]
        found = replace(found, videos=many)
    page = folder / "gallery.html"
    page.write_text(gallery.page(found, lines, page, f"Night of {HOSTILE}"), encoding="utf-8")
    return page


@contextmanager
def served(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()


def check(condition: object, what: str) -> None:
    print(("ok   " if condition else "FAIL ") + what, flush=True)
    if not condition:
        raise SystemExit(1)


def wait(page: Page, expression: str) -> None:
    """Until it holds. Playwright's own way is forbidden by the page's policy, as any other script is."""
    until = time.monotonic() + 60
    while not page.evaluate(expression):
        assert time.monotonic() < until, expression
        page.wait_for_timeout(100)


PLAYING = "[...document.querySelectorAll('table video')].filter(v => v.readyState > 1 && !v.paused)"
APART = f"""() => {{ const t = {PLAYING}.map(v => v.currentTime), d = 1;
  return Math.max(...t.map(a => Math.max(...t.map(b => Math.min(Math.abs(a - b), d - Math.abs(a - b)))))) }}"""


def use(page: Page, at: str) -> None:
    """Everything that one does with it."""
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(at)
    wait(page, f"{PLAYING}.length >= 4")
    check(page.locator("table figure").count() == 48, "all 48 videos have a place")
    page.wait_for_timeout(2500)
    apart = min(page.evaluate(APART) for _ in range(3))
    check(apart < 0.13, f"they play together, within a frame of each other ({apart:.3f} s)")
    check(page.title() == f"Night of {HOSTILE}", "a hostile name is the title's text")
    check(page.locator("img").count() == 0, "no name has become an element")
    check(page.locator("th", has_text=HOSTILE).count() == 1, "and is shown as it is")
    check(page.locator("li", has_text="<b>nan</b>").count() == 1, "what failed is told as text")
    page.fill("#filter", "dog mars")
    check(page.locator("table figure").count() == 6, "the filter by words: dog, Mars")
    page.fill("#filter", "")
    page.select_option("#choose-motion", "=diving")
    page.select_option("#choose-seed", "=1")
    check(page.locator("table figure").count() == 8, "the filter by motion and seed")
    page.select_option("#choose-motion", "")
    page.select_option("#choose-seed", "")
    page.select_option("#score", "CLIP-T")
    page.fill("#least", "0.24")
    check(page.locator("table figure").count() == 8, "the filter by score")
    page.fill("#least", "")
    page.select_option("#rows", "prompt")
    page.select_option("#columns", "seed")
    check(page.locator("thead th").count() == 3, "other rows and columns")
    page.select_option("#rows", "appearance")
    page.select_option("#columns", "motion")
    for box in page.locator("figcaption input").all()[:3]:
        box.check()
    page.click("#compare")
    wait(page, "document.querySelectorAll('dialog video').length === 3")
    wait(page, "[...document.querySelectorAll('dialog video')].every(v => v.readyState > 1 && !v.paused)")
    check(True, "three play side by side")
    page.click("#halt")
    page.click("#on")
    page.wait_for_timeout(700)
    times = page.evaluate("[...document.querySelectorAll('dialog video')].map(v => v.currentTime)")
    check(max(times) - min(times) < 0.03, f"and stand at the same frame ({times})")
    command = page.locator("dialog code").first.inner_text()
    check(command.startswith("customttt compose --recipe './0 <img"), f"a recipe as a command: {command}")
    page.click("#close")
    page.locator("tbody th button").first.click()
    check(page.locator("dialog video").count() == 12, "a row side by side with one click")
    page.click("#close")
    strangers = [url for url in asked if not url.startswith(at.rpartition("/")[0])]
    check(not strangers, f"nothing is asked of anyone else {strangers}")
    check(not [one for one in wrong if "favicon" not in one and "404" not in one], f"no error: {wrong}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    given = parser.parse_args()
    page_file = build(given.out / "grid")
    with sync_playwright() as playwright, served(page_file.parent) as address:
        browser = playwright.chromium.launch(executable_path=given.chromium, args=["--no-sandbox"])
        for width in (1400, 400):
            for scheme in ("light", "dark"):
                context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
                page = context.new_page()
                if (width, scheme) in ((1400, "light"), (400, "dark")):
                    use(page, page_file.as_uri() if width == 1400 else f"{address}gallery.html")
                page.goto(page_file.as_uri())
                wait(page, f"{PLAYING}.length >= 4")
                page.screenshot(path=given.out / f"grid-{width}-{scheme}.png")
                wide = page.evaluate("document.documentElement.scrollWidth")
                check(wide <= width, f"{width} {scheme}: nothing sticks out ({wide})")
                page.locator("th button").first.click() if width == 1400 else page.locator(
                    "figure button"
                ).first.click()
                page.wait_for_timeout(800)
                page.screenshot(path=given.out / f"compare-{width}-{scheme}.png")
                context.close()
        many = build(given.out / "many", copies=42)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        began = time.monotonic()
        page.goto(many.as_uri())
        wait(page, f"{PLAYING}.length >= 4")
        count = page.locator("table figure").count()
        loaded = page.locator("table video[src]").count()
        check(count >= 1000, f"{count} videos: {loaded} loaded, playing after {time.monotonic() - began:.1f} s")
        check(loaded < 200, "only those in sight are loaded")
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.wait_for_timeout(1500)
        check(page.locator("table video[src]").count() < 300, "and let go when they are far")
        browser.close()


if __name__ == "__main__":
    main()
