"""How much the tests would notice: mutants of the core, each of which its tests ought to fail.

    pip install 'mutmut==3.8.1' && python tests/mutants.py     # an hour of one core; the same command goes on
    python tests/mutants.py recipe lora                         # these modules alone
    python tests/mutants.py library --sample 300 --seed 0       # of many mutants some, drawn at random
    python tests/mutants.py recipe --again                      # the survivors once more, after tests were written

The mutations are mutmut's. Its runner is not used: it leaves out every function with a decorator (so half of `lora`,
whose contexts are the point) and all that stands at the top of a module, and it puts copies of functions beside the
originals, which the import hook of jaxtyping, by which the tests check shapes, would check as well. Here the tests of a
module are collected once and run once; then every mutant has a fork of that process, in which its functions get the
mutant's code, and the tests run until the first that fails. A mutant outside functions (constants, defaults) has a fork
in which nothing of the project is imported yet. Outcomes are kept in `--out`, one a line.

Not mutated: types, imports, docstrings, decorators. A mutant that runs ten times as long as the tests do is killed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import gc
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, FunctionType

import libcst as cst
import pytest
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

ROOT = Path(__file__).parent.parent
TESTS = {
    "losses": ["test_losses"],
    "diffusion": ["test_diffusion"],
    "recipe": ["test_recipe", "test_places"],
    "sampling": ["test_sampling"],
    "lora": ["test_lora"],
    "ttt": ["test_ttt"],
    "library": ["test_library"],
}
"""The modules, and the tests that belong to each."""
NOT_RUN = ["at_once"]
"""Tests of speed: beside other work they would kill by chance."""
SAY_NOTHING = {"len", "isinstance", "TypeVar"}
"""Calls whose mutants do not matter, or always fail."""
ALIVE, TIMEOUT, DIED, UNREAD = "SURVIVED", "(ran too long)", "(died)", "(tests cannot be imported)"


@dataclass(frozen=True)
class Mutant:
    """A whole file in which one thing is changed."""

    line: int
    code: str
    inside: bool
    """Whether the change is in the body of a function."""

    @property
    def key(self) -> str:
        return hashlib.sha256(self.code.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant."""

    key: str
    line: int
    by: str
    """The first test that failed, or ALIVE."""
    change: str


class Mutator(cst.CSTVisitor):
    """Collects (node, mutated node, line) of a module."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[cst.CSTNode, cst.CSTNode, int]] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.Annotation | cst.Import | cst.ImportFrom | cst.Decorator) or _says_nothing(node):
            return False
        for kind, mutations in mutation_operators:
            if isinstance(node, kind):
                line = self.get_metadata(PositionProvider, node).start.line
                self.found += [(node, mutated, line) for mutated in mutations(node)]
        return True


def _says_nothing(node: cst.CSTNode) -> bool:
    """Docstrings, aliases of types, and some calls."""
    if isinstance(node, cst.Expr):
        return isinstance(node.value, cst.SimpleString)
    if isinstance(node, cst.Assign) and isinstance(node.value, cst.Subscript):
        return isinstance(node.value.value, cst.Name) and node.value.value.value[:1].isupper()
    return isinstance(node, cst.Call) and cst.Module([]).code_for_node(node.func) in SAY_NOTHING


def mutants(source: str) -> list[Mutant]:
    """All that are still Python, no two the same."""
    tree = MetadataWrapper(cst.parse_module(source), unsafe_skip_copy=True)
    mutator = Mutator()
    tree.visit(mutator)
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    bodies = [range(node.body[0].lineno, (node.end_lineno or 0) + 1) for node in functions]
    made = {}
    for node, mutated, line in mutator.found:
        changed = tree.module.deep_replace(node, mutated)
        assert isinstance(changed, cst.Module)
        made[changed.code] = Mutant(line, changed.code, any(line in body for body in bodies))
    return [one for one in made.values() if one.code != source and _is_python(one.code)]


def _is_python(code: str) -> bool:
    try:
        compile(code, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def difference(source: str, mutant: str) -> str:
    """Lines with - and +."""
    lines = difflib.unified_diff(source.splitlines(), mutant.splitlines(), lineterm="", n=0)
    return "\n".join(line for line in list(lines)[3:] if line.strip())


def forked(action: Callable[[], str], seconds: float, log: Path) -> str:
    """What an action returns in a process of its own, which is ended, with all that it started, after some seconds."""
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        os.setsid()
        os.close(reader)
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        answer = DIED
        try:
            answer = action()
        finally:
            os.write(writer, answer.encode())
            os._exit(0)
    os.close(writer)
    end, ended = time.monotonic() + seconds, False
    while not (ended := os.waitpid(pid, os.WNOHANG)[0] == pid) and time.monotonic() < end:
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if not ended:
        os.waitpid(pid, 0)
    with os.fdopen(reader) as answers:
        return (answers.read() or DIED) if ended else TIMEOUT


class Runner:
    """A plugin of pytest that runs the collected tests once, and then again in a fork for every mutant.

    Without mutants it is a plain run until the first test that fails.
    """

    def __init__(
        self, place: Path, todo: Iterable[tuple[Mutant, Callable[[str], None]]] = (), log: Path = Path()
    ) -> None:
        self.place, self.todo, self.log = place, todo, log
        self.by = DIED

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.by = UNREAD

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.by = report.nodeid.partition("::")[2]

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        start = time.monotonic()
        if self.by != UNREAD:
            self.by = ALIVE
            self.run(session)
        if self.by != ALIVE or not self.todo:
            return True
        seconds = 10 * (time.monotonic() - start) + 10
        functions = [one for one in gc.get_objects() if isinstance(one, FunctionType)]
        mine = {one.__qualname__: one for one in functions if one.__code__.co_filename == str(self.place)}
        gc.collect()
        gc.freeze()  # no fork needs to look at what is here
        scratch = Path(session.config.option.basetemp)
        kept = set(scratch.iterdir())
        for mutant, tell in self.todo:
            self.place.write_text(mutant.code)
            tell(forked(lambda one=mutant: self.run_mutant(session, mine, one.code), seconds, self.log))  # type: ignore[misc]
            for left in set(scratch.iterdir()) - kept:
                shutil.rmtree(left, ignore_errors=True)
        return True

    def run_mutant(self, session: pytest.Session, functions: dict[str, FunctionType], code: str) -> str:
        loader = importlib.import_module(f"customttt.{self.place.stem}").__loader__
        for made in code_objects(loader.source_to_code(code.encode(), str(self.place))):  # type: ignore[union-attr]
            if made.co_qualname in functions:
                functions[made.co_qualname].__code__ = made
        self.run(session)
        return self.by

    def run(self, session: pytest.Session) -> None:
        first, *others = session.items  # which comes after the last, so that what fixtures of the module made stays
        for item, following in zip(session.items, (*others, first), strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.by != ALIVE:
                break


def code_objects(code: CodeType) -> Iterator[CodeType]:
    """Those of functions and methods, and not of functions inside functions."""
    for one in code.co_consts:
        if isinstance(one, CodeType) and "<locals>" not in one.co_qualname:
            yield one
            yield from code_objects(one)


def run_tests(copy: Path, runner: Runner, writes: bool = False) -> str:
    """The first test that fails."""
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "TOKENIZERS_PARALLELISM": "false"}
    sys.dont_write_bytecode = not writes
    files = [f"tests/{name}.py" for name in TESTS[runner.place.stem]]
    chosen = " and ".join(f"not {name}" for name in NOT_RUN)
    scratch = copy.parent / "scratch"
    pytest.main(["-s", "-p", "no:cacheprovider", "--basetemp", str(scratch), "-k", chosen, *files], plugins=[runner])
    return runner.by


def import_others(copy: Path, runner: Runner, names: Path) -> str:
    """Run the tests, and write the names of other projects' modules that they import."""
    by = run_tests(copy, runner, writes=True)
    others = [name for name, one in sys.modules.items() if "site-packages" in (getattr(one, "__file__", "") or "")]
    names.write_text("\n".join(others))
    return by


def warm(names: Iterable[str]) -> None:
    """Import modules once for all forks."""
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


def outcomes(file: Path) -> dict[str, Outcome]:
    lines = file.read_text().splitlines() if file.exists() else []
    return {found["key"]: Outcome(**found) for found in map(json.loads, lines)}


def study(module: str, out: Path, sample: int, seed: int, again: bool) -> list[Outcome]:
    """The outcome of every mutant of a module; those that are known already are not run."""
    source, file = (ROOT / "customttt" / f"{module}.py").read_text(), out / f"{module}.jsonl"
    made = mutants(source)
    if sample and sample < len(made):
        chosen = sorted(random.Random(seed).sample(range(len(made)), sample))
        made = [made[number] for number in chosen]
    known = outcomes(file)
    todo = [one for one in made if one.key not in known or (again and known[one.key].by == ALIVE)]
    if todo:
        with tempfile.TemporaryDirectory() as folder:
            run_all(module, source, todo, Path(folder), file)
    known = outcomes(file)
    return [known[one.key] for one in made]


def run_all(module: str, source: str, todo: list[Mutant], folder: Path, file: Path) -> None:
    copy, log, terminal = folder / "copy", file.with_suffix(".log"), os.fdopen(os.dup(2), "w")
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "__pycache__", "runs", ".*_cache"))
    place = copy / "customttt" / f"{module}.py"

    def telling(mutant: Mutant) -> Callable[[str], None]:
        def tell(by: str) -> None:
            found = Outcome(mutant.key, mutant.line, by, difference(source, mutant.code))
            with file.open("a") as records:
                records.write(json.dumps(asdict(found)) + "\n")
            print(f"{module}:{mutant.line} {by}", file=terminal, flush=True)

        return tell

    names, start = folder / "names", time.monotonic()
    failed = forked(lambda: import_others(copy, Runner(place), names), 3600, log)
    if failed != ALIVE:
        sys.exit(f"The tests of {module} fail without any mutant: {failed}. See {log}.")
    seconds = 10 * (time.monotonic() - start)
    warm(names.read_text().split())
    for compiled in copy.rglob(f"{module}.*.pyc"):
        compiled.unlink()
    for mutant in (one for one in todo if not one.inside):
        place.write_text(mutant.code)
        telling(mutant)(forked(lambda: run_tests(copy, Runner(place)), seconds, log))
    place.write_text(source)
    if inside := [(one, telling(one)) for one in todo if one.inside]:
        session = file.with_suffix(".session.log")
        if (ended := forked(lambda: run_tests(copy, Runner(place, inside, log)), 1e6, session)) != ALIVE:
            sys.exit(f"The run of {module} ended early: {ended}. See {session}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(TESTS)}; all by default")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mutants", help="where the outcomes are kept")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="so many of each module; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--again", action="store_true", help="run what survived before once more")
    options = parser.parse_args()
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for module in options.modules or TESTS:
        found = study(module, out, options.sample, options.seed, options.again)
        alive = [one for one in found if one.by == ALIVE]
        for one in alive:
            print(f"\n{module}.py:{one.line}\n{one.change}")
        killed = len(found) - len(alive)
        print(f"\n{module}: {len(found)} mutants, {killed} killed ({killed / len(found):.1%}), {len(alive)} survived")


if __name__ == "__main__":
    main()
