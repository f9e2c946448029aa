"""The method, measured on `tiny`: `python -m customttt.lab.study --out runs/study --report docs/study.md`.

Ten pairings of a held-out subject with a held-out movement, five scenes, three seeds; every arm renders them from the
same noise, and the judge, who knows the truth, scores them. Every LoRA, adaptation and cell is kept in `--out`, so a
killed run goes on, and `--workers 2` is two processes. `--share 3/10` is all of the third pairing; other machines'
scores are joined by appending their `ledger.jsonl` to one file. It makes the tables that the supplement has, or those
of `--tables`. `--quick` makes them in minutes, with too few steps to learn anything.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from customttt import opening
from customttt.lab import report
from customttt.lab.arms import BLOCKS, SUPPLEMENT, TABLES
from customttt.lab.experiment import QUICK, Size, Study


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m customttt.lab.study", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of everything that is made")
    parser.add_argument("--base", default="tiny", help="tiny, or the folder of an exported checkpoint")
    parser.add_argument("--tables", nargs="+", default=SUPPLEMENT, choices=[*TABLES, BLOCKS])
    parser.add_argument("--share", default="1/1", help="which part of the work this process does: 1/2, 2/2")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the work")
    parser.add_argument("--pairings", type=int, default=Size().pairings)
    parser.add_argument("--scenes", type=int, default=Size().scenes)
    parser.add_argument("--seeds", type=int, default=Size().seeds)
    parser.add_argument("--quick", action="store_true", help="two pairings, one scene, one seed, few steps")
    parser.add_argument("--report", type=Path, help="write the report here, with its pictures beside it")
    given = parser.parse_args()
    backbone, accelerator = opening.open_accelerated(given.base)
    size = QUICK if given.quick else Size(given.pairings, given.scenes, given.seeds)
    study = Study(backbone, accelerator, given.out, size, lambda line: print(line, flush=True))
    i, n = map(int, given.share.split("/"))
    study.run(given.tables, (i, n), given.workers)
    if given.report:
        command = " ".join(["python -m customttt.lab.study", *sys.argv[1:]])
        report.write(study, given.tables, given.report, command)


if __name__ == "__main__":
    main()
