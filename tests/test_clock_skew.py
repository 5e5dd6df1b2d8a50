"""A host whose clock is wrong is refused: leases of other hosts would be over for it, or never."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from made_databases import laid

from advisor.errors import StoreError
from advisor.faces.cli import run
from advisor.storage import rows
from advisor.storage.clock import ahead_s, refuse_wrong_clock
from advisor.storage.store import Store

MODEL = str(Path(__file__).parent / "models" / "encoder")


def shifted(monkeypatch: pytest.MonkeyPatch, off_s: float) -> None:
    """Have this host's clock be off, as the storage reads it."""
    monkeypatch.setattr(rows, "now", lambda later_s=0.0: datetime.now(UTC) + timedelta(seconds=off_s + later_s))


@pytest.mark.parametrize(("off_s", "words"), [(40, "40 s ahead of"), (-7, "7 s behind")])
def test_a_hosts_clock_is_held_against_the_servers(
    postgres_url: str, off_s: float, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that agrees is let in; one that is off is told by how much, either way."""
    with Store.open(laid(postgres_url), write=True) as store:
        assert abs(ahead_s(store)) < 1.0
        refuse_wrong_clock(store)
        shifted(monkeypatch, off_s)
        with pytest.raises(StoreError, match=f"this host's clock is {words} the database server's"):
            refuse_wrong_clock(store)


def test_a_file_is_of_one_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else's clock counts for a SQLite file: any is let in."""
    shifted(monkeypatch, 40)
    with Store.open(laid(f"sqlite:///{tmp_path}/advisor.db"), write=True) as store:
        assert ahead_s(store) == 0
        refuse_wrong_clock(store)


@pytest.mark.parametrize("command", [["tune", MODEL, "--device", "cpu"], ["worker", "--workers", "cpu"]])
def test_what_measures_is_refused(
    command: list[str], postgres_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`tune` and the daemon end with status 2 before they measure anything."""
    monkeypatch.setenv("ADVISOR_DATABASE_URL", laid(postgres_url))
    shifted(monkeypatch, 40)

    assert run(command) == 2
    assert "this host's clock is 40 s ahead" in capsys.readouterr().err
