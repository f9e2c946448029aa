"""The command `grid`: appearances x motions x prompts x seeds, and what has to be learned first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from customttt.errors import IncompleteError, UsageError
from customttt.library import Library
from customttt.many import spec as files
from customttt.many.spec import GridSpec
from customttt.progress import Progress, duration
from customttt.recipe import in_turn, listed
from customttt_cli import options, output
from customttt_cli.sources import count
from customttt_cli.video_options import with_video_options

if TYPE_CHECKING:
    from customttt.many.engine import Crew, Outcome
    from customttt.many.grid import Foretold, Grid

SUMMARY = "grid.json"
_File = Annotated[
    Path | None, typer.Argument(help="A grid as .toml or .json; options here come before it.", show_default=False)
]
_Prompt = Annotated[
    list[str] | None, typer.Option(help="Where: 'on Mars'; give it several times for several.", show_default=False)
]
_Seeds = Annotated[int | None, typer.Option(help="Videos of each, of seeds from 0; by default 1.", show_default=False)]
_Workers = Annotated[
    int | None,
    typer.Option(help="Processes, each with a GPU or else --threads CPU threads; by default this one alone."),
]
_Ray = Annotated[
    str | None,
    typer.Option(help="On Ray: local, auto, or a head's address; --workers is how many at most.", show_default=False),
]
_Threads = Annotated[
    int, typer.Option(help="CPU threads for each video; they decide its last bits, whoever makes it.", min=1)
]
_Names = Annotated[str | None, typer.Option(help="Names with commas between, or all.", show_default=False)]


@with_video_options
def grid(
    file: _File = None,
    appearances: _Names = None,
    motions: _Names = None,
    prompt: _Prompt = None,
    prompts: Annotated[Path | None, typer.Option(help="A file with a prompt a line.", show_default=False)] = None,
    seeds: _Seeds = None,
    further: options.Others = None,
    then: options.Then = None,
    folder: Annotated[Path, typer.Option("--output", "-o", help="A folder for the videos.")] = Path("customttt-grid"),
    *,
    settings: dict[str, Any],
    base: options.ConceptsBase = None,
    workers: _Workers = None,
    ray: _Ray = None,
    threads: _Threads = 1,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Compose many videos, and learn what has to be learned first; a killed grid goes on, and nothing is done twice."""
    if workers is not None and not 1 <= workers <= 256:
        raise UsageError(f"--workers is {workers}; it must be 1 to 256.")
    given = {
        "appearances": _names(appearances), "motions": _names(motions), "prompts": _prompts(prompt, prompts),
        "seeds": seeds, "base": base, "further": further, "then": then,
    }  # fmt: skip
    if ray is not None:
        _check_ray()
    spec = _spec(file, given, settings)
    made = _planned(Library(), spec, folder, threads)
    foretold = _foretold(made)
    _tell_plan(made, foretold, workers or 1, dry_run, as_json)
    if not dry_run:
        _carry_out(made, foretold, workers, ray, as_json)


def _check_ray() -> None:
    """Raise UsageError where Ray is not installed."""
    from importlib.util import find_spec

    if find_spec("ray") is None:
        raise UsageError("Ray is not installed; pip install 'customttt[ray]', or leave --ray out.")


def _names(text: str | None) -> str | list[str] | None:
    if text is None or text.strip() == "all":
        return text and "all"
    return [name.strip() for name in text.split(",")]


def _prompts(typed: list[str] | None, path: Path | None) -> list[str] | None:
    """Those that were typed, then those of the file, each once."""
    prompts = [*(typed or ()), *(files.read_prompts(path) if path else ())]
    return list(dict.fromkeys(prompts)) or None


def _spec(file: Path | None, given: dict[str, Any], settings: dict[str, Any]) -> GridSpec:
    """The grid of the file, if there is one, with what was typed in place of what stands in it."""
    if given["seeds"] is not None and given["seeds"] < 1:
        raise UsageError(f"--seeds is {given['seeds']}; it must be at least 1.")
    spec = files.read(file) if file else GridSpec()
    spec = spec.model_copy(
        update={
            **{name: value for name, value in given.items() if value is not None},
            "settings": spec.settings.model_copy(update=settings),
        }
    )
    spec.settings.check()
    return spec


def _planned(library: Library, spec: GridSpec, folder: Path, threads: int) -> Grid:
    """The grid on its base, every concept found. Raises what makes it impossible, before anything is loaded."""
    from customttt import media

    media.check_place(folder / SUMMARY)
    _check_summary(folder / SUMMARY)
    with output.loading_torch():
        from customttt.many.grid import Grid
    with output.waiting("Looking at what there is"):
        made = Grid.planned(library, spec, folder, threads)
    output.say(f"Base: {made.base}")
    return made


def _check_summary(path: Path) -> None:
    """Raise UsageError for a file that is no summary of a grid, such as a grid itself, which one would replace."""
    try:
        there = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError):
        there = None
    if not isinstance(there, dict) or "not done" not in there:
        raise UsageError(f"'{path}' is no summary of a grid and would be replaced by one; give another --output.")


def _foretold(made: Grid) -> Foretold:
    with output.waiting("Working out what is missing, memory, time and disk"):
        return made.forecast()


def _tell_plan(made: Grid, foretold: Foretold, workers: int, dry_run: bool, as_json: bool) -> None:
    seconds = foretold.total / workers
    if dry_run and as_json:
        plan = {
            "jobs": made.counts, "missing": foretold.missing, "seconds": round(seconds, 1),
            "memory_bytes": foretold.memory * workers, "memory_free_bytes": foretold.free, "disk_bytes": foretold.disk,
        }  # fmt: skip
        output.result(json.dumps(plan, indent=2))
        return
    for line in _plan_lines(made, foretold, workers):
        (output.result if dry_run else output.say)(line)


def _plan_lines(made: Grid, foretold: Foretold, workers: int) -> Iterator[str]:
    sizes = [len(made.axes["appearance"]), len(made.axes["motion"]), len(made.spec.prompts)]
    nouns = ("appearance", "motion", "prompt", "seed")
    axes = [count(size, noun) for size, noun in zip([*sizes, made.spec.how_many_seeds()], nouns, strict=True)]
    beside = f", each with {listed(made.spec.further)}" if made.spec.further else ""
    beside += f", each followed by {in_turn(made.spec.then)}" if made.spec.then else ""
    videos = f"{count(made.counts['video'], 'video')}, {foretold.missing['video']:,} of them missing"
    yield f"{' x '.join(axes)}{beside}: {videos}."
    if foretold.missing["learn"] or foretold.missing["adapt"]:
        yield (
            f"Before them: {count(foretold.missing['learn'], 'concept')} to learn, "
            f"test-time training of {count(foretold.missing['adapt'], 'pair')}."
        )
    if not any(foretold.missing.values()):
        return
    needed = f"{output.gigabytes(foretold.memory)} of the {output.gigabytes(foretold.free)} that are free"
    each = f", for each of {workers} workers" if workers > 1 else ""
    yield f"Memory: {needed}{each}; time: about {duration(foretold.total / workers)}."
    yield f"Disk: about {output.gigabytes(foretold.disk)}."


def _carry_out(made: Grid, foretold: Foretold, workers: int | None, ray: str | None, as_json: bool) -> None:
    from customttt import backbones
    from customttt.many import engine
    from customttt.many.grid import Pace

    if any(foretold.missing.values()):
        backbones.check_at_hand(made.base)
        made.library.check_writable()
    output.goes_on()
    counts, bad, done = made.counts, list[dict[str, str]](), 0
    with _crew(made, workers, ray, sum(foretold.missing.values())) as crew, output.progress() as report:
        pace = Pace(foretold, crew.room())
        for outcome in engine.run(made.jobs(), made, crew):
            done += 1
            pace.note(outcome)
            _tell(outcome, done, sum(counts.values()), pace.left, as_json)
            report(Progress("grid", done, sum(counts.values()), left=pace.left))
            if outcome.why:
                bad.append({"job": outcome.job.title, "state": outcome.state, "why": outcome.why})
    _summarize(made, bad)


@contextmanager
def _crew(made: Grid, workers: int | None, ray: str | None, missing: int) -> Iterator[Crew]:
    """Who does the jobs, no more of them than jobs are missing."""
    from customttt.many import bench
    from customttt.many.crews import Apart, Processes
    from customttt.many.engine import Alone

    if ray is not None and missing:
        from customttt.many import rays

        count = min(workers or missing, missing)
        with Apart(rays.OnRay(made.library, made.base, ray, count, made.threads), rays.ENDED) as crew:
            yield crew
        return
    opened = partial(bench.opened, made.base, made.library.root, made.threads)
    if workers is None or not missing:
        yield Alone(opened)
        return
    with Processes(opened, workers) as processes:
        yield processes


def _tell(outcome: Outcome, done: int, total: int, left: float, as_json: bool) -> None:
    """A line for each job with --json; else the path of each video, and why something failed."""
    job = outcome.job
    if as_json:
        path = {"path": str(outcome.value)} if job.kind == "video" and outcome.value else {}
        why = {"why": outcome.why} if outcome.why else {}
        told = {"job": job.key, "kind": job.kind, "title": job.title, "state": outcome.state, **path, **why}
        progress = {"seconds": round(outcome.seconds, 2), "done": done, "of": total, "seconds_left": round(left, 1)}
        output.result(json.dumps({**told, **progress}, ensure_ascii=False))
    elif job.kind == "video" and outcome.value:
        output.result(str(outcome.value))
    if outcome.state == "failed":
        output.warn(f"{job.title} failed: {outcome.why}")


def _summarize(made: Grid, bad: Sequence[dict[str, str]]) -> None:
    """Write what did not come about beside the videos. Raises IncompleteError if there is such."""
    from customttt import media

    with media.placed(made.folder / SUMMARY) as aside:
        text = json.dumps({"videos": made.counts["video"], "not done": bad}, indent=1, ensure_ascii=False)
        aside.write_text(text, encoding="utf-8")
    if not bad:
        output.say(f"To look at: customttt gallery {made.folder}")
        return
    failed = [one for one in bad if one["state"] == "failed"]
    skipped = len(bad) - len(failed)
    also = f", and {count(skipped, 'job')} that needed one of them skipped" if skipped else ""
    raise IncompleteError(
        f"{count(len(failed), 'job')} failed{also}; the first: {failed[0]['job']}: "
        f"{failed[0]['why'].rstrip('.')}. The same command tries these again."
    )
