"""Where the database is: `~` and `$NAME` are meant as a shell means them, and a network's file system is told from ours."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from advisor.errors import BadInput
from advisor.storage import place
from advisor.storage.database import upgrade
from advisor.storage.place import database_path, place_of, shown_url
from advisor.storage.store import Store


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a home directory, and another one to be in."""
    (tmp_path / "own").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "own"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "own"


@pytest.mark.parametrize("written", ["~/x.db", "/~/x.db", "$HOME/x.db", "${HOME}/x.db", "../own/x.db", "~/a/../x.db"])
def test_home_is_meant(home: Path, written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it is written, the file is the one in the home directory, for everybody who asks and opens."""
    url = f"sqlite:///{written}"
    assert database_path(url) == home / "x.db"
    assert shown_url(url) == str(home / "x.db")
    upgrade(url)
    Store.open(url, write=True).close()
    monkeypatch.chdir("/")
    assert (home / "x.db").stat().st_size > 0
    assert [path.name for path in (home.parent / "here").iterdir()] == []


def test_a_relative_path_stays_where_it_was(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is one of the directory in which it was read."""
    made = place_of("sqlite:///x.db")
    monkeypatch.chdir("/")
    assert made.database == str(home.parent / "here" / "x.db")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite:///$NOT_SET/x.db", r"\$NOT_SET, which is not set"),
        ("sqlite:///~nobody-at-all/x.db", "~nobody-at-all"),
        ("sqlite://~/x.db", "sqlite:/// with its path"),
        ("sqlite:///file:~/x.db?uri=true", "sqlite:/// with its path"),
    ],
)
def test_what_means_no_file_is_told(home: Path, url: str, words: str) -> None:
    """A path that can't be meant is refused in a line, before a directory is made of it."""
    with pytest.raises(BadInput, match=words):
        Store.open(url, write=True)
    assert [*home.iterdir(), *Path.cwd().iterdir()] == []


LINE = r"36 35 98:0 / {point} rw,noatime shared:1 - {kind} server:/x rw"


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "fuse.gcsfuse", "9p"])
def test_on_a_network_sqlite_has_no_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """On a network's file system the journal is a rollback journal, whatever it was before, and a note says so."""
    folder = tmp_path / "a share"
    folder.mkdir()
    url = f"sqlite:///{folder}/x.db"
    with Store.open(url, write=True) as store:
        assert store.notes == ()
    mounts = (
        ("/", "ext4"),
        (str(folder).replace(" ", r"\040"), kind),
        (f"{folder}/x.db-other".replace(" ", r"\040"), "xfs"),
    )
    (tmp_path / "mountinfo").write_text("\n".join(LINE.format(point=point, kind=each) for point, each in mounts))
    monkeypatch.setattr(place, "MOUNTS", tmp_path / "mountinfo")
    with Store.open(url, write=True) as store:
        assert kind in store.notes[0]
        assert "PostgreSQL" in store.notes[0]
        assert not (folder / "x.db-wal").exists()
    with sqlite3.connect(folder / "x.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    connection.close()
    with Store.open(url, write=False) as store:
        assert store.studies() == []


@pytest.mark.parametrize("kind", ["ext4", "xfs", "overlay", "tmpfs", "fuse.fuse-overlayfs", "fuseblk", "zfs"])
def test_on_this_host_sqlite_has_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """On this host's own file systems nothing changes; nor where what is mounted can't be read."""
    (tmp_path / "mountinfo").write_text(LINE.format(point="/", kind=kind) + "\nnonsense\n")
    for mounts in (tmp_path / "mountinfo", tmp_path / "none"):
        monkeypatch.setattr(place, "MOUNTS", mounts)
        with Store.open(f"sqlite:///{tmp_path}/x.db", write=True) as store:
            assert store.notes == ()
        engine = create_engine(f"sqlite:///{tmp_path}/x.db")
        with engine.connect() as connection:
            assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        engine.dispose()
