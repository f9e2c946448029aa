"""The ledger: nothing measured is lost or measured twice."""

from __future__ import annotations

from pathlib import Path

from customttt.measure.ledger import Ledger


def test_what_one_process_puts_another_gets(tmp_path: Path) -> None:
    first, second = Ledger(tmp_path / "runs" / "ledger.jsonl"), Ledger(tmp_path / "runs" / "ledger.jsonl")
    assert second.get("a") is None
    first.put("a", score=0.5)
    second.put("b", score=1.0, note="on Mars")
    assert second.get("a") == {"score": 0.5}
    assert first.get("b") == {"score": 1.0, "note": "on Mars"}
    assert Ledger(first.path).get("c") is None


def test_a_cut_line_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger(path).put("a", score=0.5)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:9])
    after = Ledger(path)
    assert after.get("a") == {"score": 0.5}
    after.put("b", score=1.0)
    assert after.get("b") == {"score": 1.0}
