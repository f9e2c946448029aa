"""The page without a browser: one queue that stops and goes on, forms that say what is wrong, and nothing unescaped."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from material import assert_one_sentence, run, text_file

from customttt import backbones, checkpoint, media
from customttt.errors import AlreadyExistsError, CustomTTTError, DamagedError, MediaError, NotFoundError, UsageError
from customttt.library import Library
from customttt.progress import Progress
from customttt.ui import desk as desks
from customttt.ui import parts
from customttt.ui.desk import Desk, DeskTask
from customttt.ui.door import Channel, Door, Scope
from customttt.ui.studio import LearningForm, Studio
from customttt.wish import Wish
from customttt.workshop import Plan

HOSTILE = "<img src=x onerror=alert(1)> {{7*7}} ${7*7}"


@pytest.fixture
def desk() -> Iterator[Desk]:
    with Desk() as one:
        yield one


def until(condition: Callable[[], object]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it did not come about in a minute")


def test_tasks_are_done_one_after_the_other_and_a_failure_stops_no_other(desk: Desk) -> None:
    order: list[int] = []

    def work(task: DeskTask) -> str:
        order.append(task.number)
        if task.number == 2:
            raise MediaError("No picture.")
        if task.number == 3:
            raise ValueError("boom")
        return "Done."

    tasks = [desk.add(f"task {number}", work) for number in range(1, 5)]
    until(lambda: tasks[-1].state == "done")
    assert order == [1, 2, 3, 4]
    assert [task.state for task in tasks] == ["done", "failed", "failed", "done"]
    assert [task.said for task in tasks[:3]] == ["Done.", "No picture.", "Unexpected ValueError (boom)."]
    desk.clear()
    assert desk.tasks == []
    with pytest.raises(NotFoundError):
        desk.stop(1)


def test_a_task_is_stopped_at_its_next_step_and_goes_on(desk: Desk) -> None:
    steps: list[int] = []

    def work(task: DeskTask) -> str:
        for step in range(len(steps) + 1, 501):
            task.note_or_stop(Progress("learning", step, 500, loss=1 / step))
            steps.append(step)
            until(lambda: task.stopping() or len(steps) < 50 or task.said == "on")
        return ""

    task, waiting = desk.add("long", work), desk.add("next", lambda _: "")
    desk.stop(waiting.number)
    until(lambda: len(steps) == 50)
    desk.stop(task.number)
    until(lambda: task.state == "stopped")
    assert waiting.state == "stopped"
    assert task.losses == pytest.approx([1 / step for step in range(1, 51)])
    desk.go_on(task.number)
    until(lambda: task.state == "running")
    task.said = "on"
    until(lambda: task.state == "done")
    assert steps == list(range(1, 501))
    assert len(task.losses) == 500


def test_too_many_tasks_are_refused(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desks, "MAX_TASKS", 1)
    desk.add("one", lambda _: "")
    with pytest.raises(UsageError, match="already"):
        desk.add("two", lambda _: "")


def test_nothing_that_is_shown_is_an_element_or_a_template(tmp_path: Path) -> None:
    file = tmp_path / HOSTILE
    file.write_bytes(b"")
    gone = tmp_path / "gone.mp4"  # as where a concept was renamed
    task = DeskTask(1, HOSTILE, lambda _: "", state="failed", said=HOSTILE, files=[(file, HOSTILE), (gone, "gone")])
    task.note(Progress(HOSTILE, 1, 2, loss=0.5))
    pixels = np.zeros((8, 8, 3), np.uint8)
    shown = [
        parts.said(HOSTILE, bad=True), parts.tasks([task]), parts.made([task]),
        parts.pictures([(HOSTILE, pixels, (HOSTILE,))]),
        parts.library([(HOSTILE, DamagedError(HOSTILE))], Path(HOSTILE)),
    ]  # fmt: skip
    assert "gone" not in shown[2]
    for html in shown:
        assert "<img src=x" not in html
        assert "&lt;img src=x" in html
        assert not set("{}$") & set(html)


@pytest.fixture
def studio(desk: Desk, tiny_random_base: Path, tmp_path: Path) -> Iterator[Studio]:
    one = Studio(Library(), desk, tmp_path / "videos", str(tiny_random_base), cores=1)
    yield one
    one.close()
    assert not one.passing.exists()


def test_a_form_learns_stops_goes_on_and_composes(
    studio: Studio, pictures: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("customttt.workshop.GLANCE_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 1e9)
    monkeypatch.setattr(Plan, "forecast", lambda _: SimpleNamespace(position=0))  # of which other tests are
    found, _ = studio.pictures([str(one) for one in sorted(pictures.iterdir())])
    glances: list[int] = []

    def glance(task: DeskTask) -> bool:
        """Stops it as soon as it has shown something."""
        if task.files and not glances:
            glances.append(len(task.losses))
            studio.desk.stop(task.number)
        return task.state == "stopped"

    task = studio.learn(LearningForm("appearance", "koala", changes={"steps": 30, "rank": 4}), found)
    until(lambda: glance(task))
    assert 0 < len(task.losses) < 30
    monkeypatch.setattr("customttt.workshop.GLANCE_SECONDS", 1e9)
    studio.desk.go_on(task.number)
    long = "A man is swimming. " * 40
    form = LearningForm("motion", "swimming", prompt=long, changes={"steps": 2, "rank": 4})
    moving = studio.learn(form, studio.clip(str(clip), 0, 1))
    until(lambda: moving.state in ("done", "failed"))
    assert (task.state, moving.state) == ("done", "done"), (task.said, moving.said)
    assert len(Library().get("koala").losses) == 30
    assert [path.name for path, _ in moving.files] == ["preview.mp4"]
    unread = r"\. The prompt has \d+ tokens, and .* reads \d+; its end is ignored\.$"
    assert "tokens" not in task.said
    assert re.search(unread, moving.said)
    with pytest.raises(AlreadyExistsError):
        studio.learn(LearningForm("appearance", "koala", changes={"steps": 3}), found)
    made = studio.compose(studio.recipe("koala", "swimming", Wish("on Mars, " * 40, num=2)), 2)
    until(lambda: made.state in ("done", "failed"))
    assert made.state == "done", made.said
    assert re.search(unread, made.said)
    assert [path.suffix for path, _ in made.files] == [".mp4", ".mp4"]
    assert all(path.is_file() for path, _ in made.files)
    again = studio.recipe("koala", "swimming", Wish("on Mars"))
    with pytest.raises(UsageError, match="'swimming' is a motion twice"):
        studio.recipe("koala", "swimming", Wish("on Mars"), then=["swimming"])
    assert media.read_recipe(made.files[0][0])["seed"] == again.seed


def test_an_uploads_captions_stay_beside_it_and_what_is_no_picture_is_named(
    studio: Studio, pictures: Path, tmp_path: Path
) -> None:
    files = [str(one) for one in sorted(pictures.iterdir())]
    for folder, text in (("a", "A koala."), ("b", "A tiger.")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.txt").write_text(text)
    twin = tmp_path / "b" / "0.jpg"
    twin.write_bytes(Path(files[1]).read_bytes())
    found, said = studio.pictures([*files, str(tmp_path / "a" / "0.txt"), str(text_file(tmp_path / "notes.md"))])
    assert [one.captions for one in found] == [("A koala.",), (), ()]
    assert said[0].startswith("Passed over in 'your pictures': notes.md (")
    found, _ = studio.pictures([files[0], str(twin), str(tmp_path / "a" / "0.txt"), str(tmp_path / "b" / "0.txt")])
    assert [one.captions for one in found] == [("A koala.",), ("A tiger.",)]


def test_what_is_no_number_is_one_sentence() -> None:
    assert (parts.number("Rate", " "), parts.number("Rate", "1e-4"), parts.whole("Steps", "7")) == (None, 1e-4, 7)
    for read, text in [(parts.number, one) for one in ("nan", "inf", "-inf", "1e999", "x")] + [(parts.whole, "1.5")]:
        with pytest.raises(UsageError, match=f"The rate cannot be '{text}'; give a"):
            read("The rate", text)
    assert parts.split(" dog:jumping,, cat ") == ["dog:jumping", "cat"]
    assert [parts.given(text) for text in (None, " ", " 16:9")] == [None, None, "16:9"], "a hidden field gives None"


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda studio, _: studio.pictures([]), "no pictures yet"),
        (lambda studio, file: studio.pictures([file]), "'your pictures' has no picture"),
        (lambda studio, _: studio.clip("", 0, 1), "no clip yet"),
        (lambda studio, file: studio.strip(file), "no.txt"),
        (lambda studio, _: studio.recipe("", "", Wish("")), "Choose an appearance"),
        (lambda studio, _: studio.recipe("koala", "swimming", Wish("")), "no concept 'koala'"),
        (lambda studio, _: studio.recipe("koala", "swimming", Wish(""), [("dog", "x")]), "no concept 'dog'"),
        (lambda studio, _: studio.recipe("koala", "swimming", Wish(""), (), ["x"]), "no concept 'koala'"),
        (lambda studio, _: studio.admit(""), "no file to import"),
        (lambda studio, file: studio.admit(file), "cannot be imported"),
        (lambda studio, _: studio.learn(LearningForm("motion", "../x"), ()), "cannot be a concept's name"),
    ],
)
def test_what_a_form_cannot_do_is_one_sentence(
    studio: Studio, tmp_path: Path, ask: Callable[[Studio, str], object], words: str
) -> None:
    with pytest.raises(CustomTTTError, match=words) as caught:
        ask(studio, str(text_file(tmp_path / "no.txt")))
    assert str(tmp_path) not in str(caught.value)
    assert studio.desk.tasks == []


@pytest.mark.usefixtures("learned")
def test_a_concept_goes_out_and_comes_in(studio: Studio) -> None:
    path = studio.export("koala", "customttt")
    added, notes = studio.admit(str(path), "bear")
    assert (added.name, added.kind, notes) == ("bear", "appearance", [])
    assert parts.library(Library().entries(), Library().path() / "concepts").count("<article>") == 3


def test_a_film_strip_is_of_the_whole_clip(clip: Path) -> None:
    strip = media.read_strip(clip, 5, 32)
    assert strip.frames.shape == (5, 32, 32, 3)
    assert strip.times[0] == 0
    assert strip.seconds == pytest.approx(1.5)
    assert parts.film(strip, 0.5, 1.0).count("ct-out") == 3


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:7860"}, 200),
        ({"host": "localhost:7860", "origin": "http://localhost:7860"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example:7860"}, 403),
        ({"host": "127.0.0.1:7860", "origin": "http://evil.example"}, 403),
        ({"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:8000"}, 403),
        ({"host": "127.0.0.1:7860", "origin": "null"}, 403),
        ({"host": "[::"}, 403),
        ({}, 403),
    ],
)
def test_no_other_site_speaks_to_the_page(headers: dict[str, str], status: int) -> None:
    answers: list[int] = []

    async def send(message: dict[str, Any]) -> None:
        answers.extend([message["status"]] if "status" in message else [])

    async def page(scope: Scope, receive: Channel, send: Channel) -> None:  # noqa: ARG001
        await send({"type": "http.response.start", "status": 200})

    given = [(name.encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(Door(page)({"type": "http", "headers": given}, send, send))
    assert answers == [status]


def test_without_gradio_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert_one_sentence(run("ui"), 2, "pip install 'customttt[ui]'")


def test_a_port_that_is_taken_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_one_sentence(run("ui", "--port", str(port)), 2, f"Port {port} of this machine", "another with --port")
    assert_one_sentence(run("ui", "--port", "70000"), 2, "1 to 65535")


def test_the_page_is_put_together(studio: Studio) -> None:
    pytest.importorskip("gradio")
    from customttt.ui.page import Page

    assert Page(studio).blocks.analytics_enabled is False


def events(page: Any, of: Callable[[Any], bool], event: str) -> list[Any]:
    """What the page does when something happens to one of its components, as Gradio keeps it."""
    those = {(number, event) for number, one in page.blocks.blocks.items() if of(one)}
    return [one for one in page.blocks.fns.values() if those & set(one.targets)]


@pytest.mark.usefixtures("learned")
def test_what_the_question_named_is_removed_whatever_is_chosen_meanwhile(studio: Studio) -> None:
    pytest.importorskip("gradio")
    from customttt.ui.page import Page

    page = Page(studio)
    (asking,) = events(page, lambda one: getattr(one, "value", "") == "Remove ...", "click")
    (removal,) = events(page, lambda one: getattr(one, "value", "") == "Remove for good", "click")
    assert len(Library().concepts()) == 2
    given = dict(zip(asking.outputs, asking.fn("koala"), strict=True))
    removal.fn(*(given[one] for one in removal.inputs))  # the dropdown may say anything by now
    assert [one.name for one in Library().concepts()] == ["swimming"]
    choices = events(page, lambda one: getattr(one, "elem_id", "") == "chosen", "change")
    assert [(one.outputs, one.fn()["visible"]) for one in choices] == [([asking.outputs[0]], False)]


@pytest.mark.parametrize("kind", ["appearance", "motion"])
def test_what_is_taken_is_told_anew_for_another_base(
    studio: Studio, pictures: Path, clip: Path, tmp_path: Path, kind: str
) -> None:
    pytest.importorskip("gradio")
    from customttt.ui.page import Page

    page = Page(studio)
    shows = f"{'taken' if kind == 'appearance' else 'part'}-{kind}"
    (change,) = (
        one
        for one in events(page, lambda one: getattr(one, "label", "") == "Base", "change")
        if shows in [shown.elem_id for shown in one.outputs]
    )
    files = [str(one) for one in sorted(pictures.iterdir())] if kind == "appearance" else str(clip)
    bad = str(text_file(tmp_path / "no.txt"))

    def said(base: str, files: Any = files) -> str:
        """With a file and a base, the whole of a clip, and no shape of its own."""
        given = {"Start, seconds": 0.0, "End, seconds": 1.5, "Base": base}
        return str(change.fn(*(given.get(one.label, files if one.elem_id else "") for one in change.inputs)))

    sides = [backbones.defaults(base).sample.sides for base in (str(studio.base), "tiny")]
    assert sides[0] != sides[1]
    for base, (height, width) in zip(("", "tiny"), sides, strict=True):
        assert f"{width} x {height}." in said(base)
    assert "no.txt" in said("tiny", [bad] if kind == "appearance" else bad)
