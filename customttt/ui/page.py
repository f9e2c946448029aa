"""The page itself: Gradio's components, and what each button asks of the studio. Every tab shows the same desk."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, get_args

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before it is imported; nothing is told to anyone

import gradio as gr
from starlette.middleware import Middleware

from customttt import backbones, wish
from customttt.concept import Kind
from customttt.config import Defaults
from customttt.errors import CustomTTTError, UsageError
from customttt.interchange.exchange import Form
from customttt.ui import parts
from customttt.ui.door import Door
from customttt.ui.studio import LearningForm, Studio
from customttt.wish import Settings, Wish

HOST, PORT = "127.0.0.1", 7860
SECONDS = 1.0
"""Between two looks at the desk."""
MAX_UPLOAD = 2 << 30
"""Bytes of one file: what is learned from is far smaller, and so is a LoRA."""
SEEDS = 8
"""Videos of one click, at most."""
WORDS = {"appearance": ("subject", "Noun", "koala"), "motion": ("movement", "Phrase", "swimming")}
PRESS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-do]');
  if (button) trigger('click', {what: button.dataset.do, task: Number(button.dataset.task)});
});
"""


@dataclass
class Page:
    """The page of a studio; `blocks` is Gradio's."""

    studio: Studio
    blocks: gr.Blocks = field(init=False)

    def __post_init__(self) -> None:
        os.environ["GRADIO_TEMP_DIR"] = str(self.studio.passing / "uploads")  # before its components are made
        with gr.Blocks(title="customttt", analytics_enabled=False) as self.blocks:
            gr.HTML("<h1>customttt</h1>")
            with gr.Tabs():
                with gr.Tab("Learn a subject"):
                    self._learning("appearance")
                with gr.Tab("Learn a movement"):
                    self._learning("motion")
                with gr.Tab("Compose"):
                    self._composing()
                with gr.Tab("Library") as tab:
                    self._library(tab)
            self._desk()

    def serve(self, port: int | None, most: int = MAX_UPLOAD) -> str:
        """Answer on this machine alone, from now on; the address. Raises UsageError for a port that is taken."""
        given = [self.studio.videos, self.studio.passing, self.studio.library.path() / "concepts"]
        try:
            _, url, _ = self.blocks.launch(
                server_name=HOST, server_port=port, share=False, quiet=True, prevent_thread_lock=True, inbrowser=False,
                max_file_size=most, allowed_paths=[str(one.absolute()) for one in given], ssr_mode=False,
                footer_links=[], css=parts.style(), theme=_theme(), mcp_server=False, pwa=False,
                app_kwargs={"middleware": [Middleware(Door)]},
            )  # fmt: skip
        except OSError as error:
            raise UsageError(f"Port {port or PORT} of this machine is taken; give another with --port.") from error
        return str(url)

    # -- learning

    def _learning(self, kind: Kind) -> None:
        what, word, example = WORDS[kind]
        with gr.Row():
            with gr.Column():
                many: Any = "multiple" if kind == "appearance" else "single"
                label = "Pictures, 3 to 8, and their .txt captions" if kind == "appearance" else "One clip"
                files = gr.File(label=label, file_count=many, elem_id=f"files-{kind}")
                taken = gr.HTML(elem_id=f"taken-{kind}")
                start = gr.Slider(0, 60, 0, step=0.05, label="Start, seconds", visible=False)
                end = gr.Slider(0, 60, 60, step=0.05, label="End, seconds", visible=False)
                part = gr.HTML(elem_id=f"part-{kind}")
            with gr.Column():
                name = gr.Textbox(label=f"What to call the {what}", placeholder=example, max_lines=1)
                phrase = gr.Textbox(label=f"{word}, if it is not the name", max_lines=1)
                prompt = gr.Textbox(label="Sentence to learn with, if not the usual one", max_lines=2)
                with gr.Accordion("More", open=False):
                    base = _base(self.studio)
                    aspect = self._shape(base, kind == "motion")
                    own = "; empty: the base's own"
                    numbers = [gr.Textbox(label=f"{one}{own}", max_lines=1) for one in ("Steps", "Rank")]
                    numbers += [gr.Textbox(label=f"Learning rate{own}", max_lines=1), gr.Textbox("0", label="Seed")]
                    force = gr.Checkbox(label="Replace a concept of that name")
                button = gr.Button("Learn", variant="primary", elem_id=f"learn-{kind}")
                told = gr.HTML(elem_id=f"told-{kind}")

        form = [files, start, end, aspect, name, phrase, prompt, base, force, *numbers]

        @_telling
        def learn(
            files: Any, start: float, end: float, aspect: str | None, name: str, phrase: str, prompt: str, base: str,
            force: bool, *numbers: str,
        ) -> str:  # fmt: skip
            steps, rank, rate, seed = numbers
            changes = {
                "steps": parts.whole("Steps", steps), "rank": parts.whole("Rank", rank),
                "learning_rate": parts.number("The learning rate", rate), "seed": parts.whole("The seed", seed),
            }  # fmt: skip
            asked = LearningForm(kind, name.strip(), phrase, prompt, base or "", changes, force)
            if kind == "appearance":
                task = self.studio.learn(asked, self.studio.pictures(files or [], asked.base)[0])
            else:
                task = self.studio.learn(
                    asked, self.studio.clip(files or "", start, end or None, asked.base, parts.given(aspect))
                )
            return parts.said(f"{task.title}: it is on the desk below.")

        button.click(learn, form, told, api_visibility="private")
        if kind == "appearance":
            for change in (files.change, base.change):
                change(_telling(self._seen), [files, base], taken, api_visibility="private")
        else:
            files.change(self._film, [files, base, aspect], [taken, part, start, end], api_visibility="private")
            for change in (start.release, end.release, aspect.change, base.change):
                change(self._part, [files, start, end, base, aspect], [taken, part], api_visibility="private")

    def _shape(self, base: gr.Dropdown, wanted: bool) -> gr.Textbox:
        """A field for the shape of videos, where the base makes any but squares."""
        label = "Width to height, as in 16:9; empty: as the clip is"
        shape = gr.Textbox(label=label, max_lines=1, visible=wanted and self.studio.makes_shapes(""))
        if wanted:
            base.change(self._of_shape, base, shape, api_visibility="private")
        return shape

    def _of_shape(self, base: str | None) -> Any:
        there = self.studio.makes_shapes(base or "")
        return gr.update(visible=True) if there else gr.update(visible=False, value="")

    def _seen(self, files: Any, base: str) -> str:
        if not files:
            return ""
        pictures, passed = self.studio.pictures(files, base or "")
        height, width = pictures[0].pixels.shape[:2]
        summary = f"Taken: {len(pictures)} picture{'s' * (len(pictures) != 1)} of {width} x {height}."
        shown = parts.pictures([(one.name, one.pixels, one.captions) for one in pictures])
        return parts.said(" ".join([summary, *passed])) + shown

    def _film(self, file: Any, base: str, aspect: str | None) -> tuple[Any, ...]:
        """The film strip of a clip, and sliders as long as it is."""
        try:
            last = round(self.studio.strip(file).seconds, 2) if file else 0.0
            shown = self._part(file, 0.0, last, base, aspect)
        except CustomTTTError as error:
            file, last, shown = None, 0.0, (parts.said(str(error), bad=True), "")
        there, most = bool(file), max(last, 0.1)
        start, end = (gr.update(visible=there, maximum=most, value=value) for value in (0, last))
        return (*shown, start, end)

    def _part(self, file: Any, start: float, end: float, base: str, aspect: str | None) -> tuple[str, str]:
        """The strip with the part between the sliders, and what is taken of it."""
        if not file:
            return "", ""
        film = ""
        try:
            film = parts.film(self.studio.strip(file), start, end)
            clip = self.studio.clip(file, start, end, base or "", parts.given(aspect))
        except CustomTTTError as error:
            return film, parts.said(str(error), bad=True)
        height, width = clip.frames.shape[1:3]
        summary = f"Taken: {len(clip.frames)} frames at {clip.fps:.3g} a second, {width} x {height}."
        frames = [(str(number), one, ()) for number, one in enumerate(clip.frames, 1)]
        return film, parts.said(summary) + parts.pictures(frames)

    # -- composing

    def _composing(self) -> None:
        defaults = backbones.defaults(self.studio._base(""))
        with gr.Row():
            with gr.Column():
                appearance = gr.Dropdown(label="Appearance", choices=self._names("appearance"), elem_id="appearance")
                motion = gr.Dropdown(label="Motion", choices=self._names("motion"), elem_id="motion")
                then = gr.Textbox(label="And then; commas between", placeholder="jumping", max_lines=1, elem_id="then")
                prompt = gr.Textbox(label="Where", placeholder="on Mars", max_lines=2, elem_id="prompt")
                number = gr.Slider(1, SEEDS, 1, step=1, label="Videos", elem_id="number")
                seed = gr.Textbox("0", label="Seed of the first", max_lines=1)
                label = "Width to height, as in 16:9; empty: as the motion's clip is"
                aspect = gr.Textbox(label=label, max_lines=1, visible=self.studio.makes_shapes(""))
                with gr.Accordion("Several subjects", open=False):
                    further = gr.Textbox(
                        label="Who else: dog:jumping, or dog alone, of whom the sentence above speaks; commas between",
                        max_lines=1, elem_id="further",
                    )  # fmt: skip
                    places = gr.Textbox(label="Who is where: koala:left, dog:right", max_lines=1)
                    apart = gr.Checkbox(label="Keep them apart by the words for them")
            with gr.Column():
                of_base = _sliders(defaults)
                scales = [gr.Slider(0, 2, 1, step=0.05, label=f"Strength of the {one}") for one in get_args(Kind)]
        button = gr.Button("Compose", variant="primary", elem_id="compose")
        told = gr.HTML(elem_id="told-compose")

        @_telling
        def compose(
            appearance: str, motion: str, then: str, prompt: str, number: float, seed: str, aspect: str | None,
            further: str, places: str, apart: bool, ttt: float, steps: float, guidance: float, looks: float,
            moves: float,
        ) -> str:  # fmt: skip
            settings = Settings(
                steps=int(steps), guidance=guidance, ttt_steps=int(ttt), appearance_scale=looks, motion_scale=moves,
                aspect=parts.given(aspect), places=wish.places(parts.split(places)), apart=apart,
            )  # fmt: skip
            asked = Wish(prompt or "", parts.whole("The seed", seed) or 0, int(number), settings=settings)
            who = wish.others(parts.split(further)), parts.split(then)
            recipe = self.studio.recipe(appearance or "", motion or "", asked, *who)
            task = self.studio.compose(recipe, asked.num)
            return parts.said(f"{task.title} It is on the desk below.")

        form = [appearance, motion, then, prompt, number, seed, aspect, further, places, apart, *of_base, *scales]
        button.click(compose, form, told, api_visibility="private")
        appearance.change(self._of_base, appearance, [*of_base, aspect], api_visibility="private")
        for one, kind in ((appearance, "appearance"), (motion, "motion")):
            fresh = self._fresh(kind)  # type: ignore[arg-type]
            one.focus(fresh, None, one, api_visibility="private")
            self.blocks.load(fresh, None, one, api_visibility="private")

    def _names(self, kind: Kind) -> list[str]:
        return [one.name for one in self.studio.library.concepts(kind)]

    def _fresh(self, kind: Kind) -> Callable[[], Any]:
        return lambda: gr.update(choices=self._names(kind))

    def _of_base(self, appearance: str | None) -> list[Any]:
        """The sliders as the base of an appearance has them, and whether it makes other shapes than squares."""
        try:
            base = self.studio.library.get(appearance or "").base
            defaults = backbones.defaults(base)
        except CustomTTTError:
            return [gr.skip()] * 4
        own = defaults.ttt.steps, defaults.sample.num_inference_steps, defaults.sample.guidance_scale
        return [*(gr.update(value=one) for one in own), self._of_shape(base)]

    # -- the library

    def _library(self, tab: gr.Tab) -> None:
        cards = gr.HTML(elem_id="library")
        with gr.Row():
            with gr.Column():
                chosen = gr.Dropdown(label="Concept", choices=[], elem_id="chosen")
                new = gr.Textbox(label="New name", max_lines=1, elem_id="new-name")
                rename = gr.Button("Rename")
                remove = gr.Button("Remove ...", variant="stop")
                with gr.Group(visible=False) as asking:
                    question = gr.HTML(padding=True)
                    with gr.Row():
                        yes = gr.Button("Remove for good", variant="stop")
                        no = gr.Button("Keep")
            with gr.Column():
                form = gr.Dropdown(label="Form", choices=list(get_args(Form)), value="customttt")
                export = gr.Button("Export")
                ready = gr.File(label="Exported", interactive=False, visible=False, elem_id="exported")
                file = gr.File(label="A file to import", file_count="single", elem_id="import-file")
                called = gr.Textbox(label="What to call it; empty: as in the file", max_lines=1)
                kind = gr.Radio(["as in the file", *get_args(Kind)], value="as in the file", label="Kind")
                base = _base(self.studio, "Base; empty: as in the file", "")
                admit = gr.Button("Import")
        told = gr.HTML(elem_id="told-library")
        named = gr.State("")

        def look() -> tuple[Any, Any]:
            entries = self.studio.library.entries()
            names = [name for name, _ in entries]
            shown = parts.library(entries, self.studio.library.path() / "concepts")
            return shown, gr.update(choices=names)

        def changing(change: Callable[..., str]) -> Callable[..., tuple[Any, ...]]:
            """Tells what came of it, shows the library anew, and asks nothing any more."""

            def changed(*given: Any) -> tuple[Any, ...]:
                told = _telling(change)(*given)
                return (told, *look(), gr.update(visible=False))

            return changed

        def renamed(chosen: str | None, new: str) -> str:
            self.studio.library.rename(_chosen(chosen), new.strip())
            return parts.said(f"'{chosen}' is '{new.strip()}' now.")

        def removed(named: str) -> str:
            self.studio.library.remove(_chosen(named))
            return parts.said(f"'{named}' was removed.")

        def admitted(file: Any, called: str, kind: str, base: str) -> str:
            known: Any = kind if kind in get_args(Kind) else None
            added, notes = self.studio.admit(file or "", called.strip(), base or "", known)
            return parts.said(" ".join([f"Imported the {added.kind} '{added.name}'.", *notes]))

        def asked(chosen: str | None) -> tuple[Any, Any, str]:
            """The question, and the name in it, which is removed whatever is chosen meanwhile."""
            if not chosen:
                return gr.update(visible=False), "", ""
            return gr.update(visible=True), parts.said(f"Remove '{chosen}' for good?"), chosen

        def exported(chosen: str | None, form: Any) -> tuple[Any, Any]:
            try:
                path = self.studio.export(_chosen(chosen), form)
            except CustomTTTError as error:
                return parts.said(str(error), bad=True), gr.update(visible=False)
            return parts.said(f"Exported '{chosen}'."), gr.update(value=str(path), visible=True)

        shown = [told, cards, chosen, asking]
        rename.click(changing(renamed), [chosen, new], shown, api_visibility="private")
        remove.click(asked, chosen, [asking, question, named], api_visibility="private")
        yes.click(changing(removed), named, shown, api_visibility="private")
        for change in (no.click, chosen.change):
            change(lambda: gr.update(visible=False), None, asking, api_visibility="private")
        export.click(exported, [chosen, form], [told, ready], api_visibility="private")
        admit.click(changing(admitted), [file, called, kind, base], shown, api_visibility="private")
        tab.select(look, None, [cards, chosen], api_visibility="private")
        self.blocks.load(look, None, [cards, chosen], api_visibility="private")
        self._look = look
        self._shelf = [cards, chosen]

    # -- the desk

    def _desk(self) -> None:
        gr.HTML("<h2>Desk</h2>")
        tasks = gr.HTML(elem_id="tasks", js_on_load=PRESS)
        made = gr.HTML(elem_id="made")
        clear = gr.Button("Clear what has ended", size="sm")
        seen = gr.State(("", "", 0))

        def look(seen: tuple[str, str, int]) -> tuple[Any, ...]:
            """What has changed since this tab last looked: a video that has not goes on playing."""
            those = list(self.studio.desk.tasks)
            now = parts.tasks(those), parts.made(those), sum(task.state == "done" for task in those)
            fresh = [new if new != old else gr.skip() for new, old in zip(now[:2], seen[:2], strict=True)]
            shelf = self._look() if now[2] != seen[2] else (gr.skip(), gr.skip())
            return (*fresh, *shelf, now if now != seen else gr.skip())

        def press(event: gr.EventData) -> None:
            given = event._data
            act = {"stop": self.studio.desk.stop, "go on": self.studio.desk.go_on}.get(given.get("what"))
            if act:
                act(given["task"])

        shown = [tasks, made, *self._shelf, seen]
        quiet: Any = {"show_progress": "hidden", "api_visibility": "private"}
        gr.Timer(SECONDS).tick(look, seen, shown, **quiet)
        tasks.click(_telling(press), None, None, **quiet)
        clear.click(self.studio.desk.clear, None, None, **quiet)


def _telling(do: Callable[..., Any]) -> Callable[..., Any]:
    """`do`, which tells what cannot be done in one sentence."""

    @wraps(do)
    def told(*given: Any) -> Any:
        try:
            return do(*given)
        except CustomTTTError as error:
            return parts.said(str(error), bad=True)

    return told


def _base(studio: Studio, label: str = "Base", value: str | None = None) -> gr.Dropdown:
    own = studio._base("")
    names = list(dict.fromkeys([own, *backbones.known_bases()]))
    return gr.Dropdown(names, value=own if value is None else value, label=label, allow_custom_value=True)


def _sliders(defaults: Defaults) -> list[gr.Slider]:
    sample = defaults.sample
    return [
        gr.Slider(0, 100, defaults.ttt.steps, step=1, label="Steps of test-time training; 0: none"),
        gr.Slider(1, 100, sample.num_inference_steps, step=1, label="Steps of denoising", elem_id="steps"),
        gr.Slider(1, 20, sample.guidance_scale, step=0.5, label="Guidance"),
    ]


def _theme() -> Any:
    """With this system's own fonts: others would be asked for on the network."""
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def _chosen(name: str | None) -> str:
    if not name:
        raise UsageError("Choose a concept of the library first.")
    return name
