"""Where the database is: its URL, what that means here, and how it is shown to people. `advisor.storage.database` opens it.

`~` and `$NAME` are meant in a SQLite URL as a shell means them; a folder of that name never is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from advisor.errors import BadInput, StoreError
from advisor.nouns.checked import shortened

#: What a URL looks like, for those whose URL can't be read.
_FORMS = "sqlite:///PATH or postgresql://USER@HOST/NAME"

#: Where Linux lists what is mounted.
MOUNTS = Path("/proc/self/mountinfo")

#: File systems that several hosts share: SQLite's write-ahead log needs memory shared by all who use it (sqlite.org/wal.html).
_NETWORK = frozenset(
    {
        "nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "beegfs", "gpfs", "glusterfs",
        "ocfs2", "gfs2", "orangefs", "pvfs2", "ncpfs", "coda", "wekafs", "davfs",
    }
)  # fmt: skip

#: File systems in user space that are on this host; every other one is taken for a network's.
_LOCAL_FUSE = frozenset(
    {
        "fuse.fuse-overlayfs",
        "fuse.bindfs",
        "fuse.mergerfs",
        "fuse.ntfs",
        "fuse.ntfs-3g",
        "fuse.exfat",
        "fuse.ext2",
        "fuse.zfs-fuse",
        "fuse.encfs",
        "fuse.gocryptfs",
        "fuse.cryfs",
        "fuse.unionfs",
        "fuse.lxcfs",
    }
)


def default_url() -> str:
    """Return ADVISOR_DATABASE_URL, or the SQLite file in the user's data directory. Nothing is created."""
    url = os.environ.get("ADVISOR_DATABASE_URL", "")
    if url:
        return with_driver(url)
    import platformdirs

    return f"sqlite:///{platformdirs.user_data_dir('advisor')}/advisor.db"


def shown_url(url: str) -> str:
    """Return the URL for people: without a password, and without the query, which can hold one too."""
    try:
        return shown(place_of(url))
    except BadInput:
        return "the database URL"


def database_path(url: str) -> Path | None:
    """Return the file of a SQLite URL, absolute, or None for a server. Raises BadInput where the URL can't be read."""
    return file_of(place_of(url))


def with_driver(url: str) -> str:
    """Name the driver we bring: SQLAlchemy's default for postgresql:// is another one."""
    for scheme in ("postgresql://", "postgres://"):
        if url.startswith(scheme):
            return "postgresql+psycopg://" + url.removeprefix(scheme)
    return url


def absolute_url(url: str) -> str:
    """Return a URL that means the same in any folder, with its password. Raises BadInput where it can't be read."""
    return place_of(url).render_as_string(hide_password=False)


def place_of(url: str) -> URL:
    """Return what a URL says, the path of a SQLite file absolute. Raises BadInput where it says nothing we can open."""
    try:
        place = make_url(with_driver(url))
        known = place.get_backend_name() in ("sqlite", "postgresql")
    except (ArgumentError, ValueError):
        said = "can't be read" if "@" in url else f"is {shortened(url.partition('?')[0])}, which is no URL"
        raise BadInput(f"ADVISOR_DATABASE_URL {said}", _FORMS) from None
    if not known:
        raise BadInput(f"ADVISOR_DATABASE_URL: no database of the kind {place.drivername!r}", _FORMS)
    if place.get_backend_name() == "postgresql" or place.database == ":memory:":
        return place
    if place.host or (place.database or "").startswith("file:"):
        raise BadInput(
            "ADVISOR_DATABASE_URL: the URL of a SQLite file is sqlite:/// with its path", "sqlite:////absolute/path.db"
        )
    return place.set(database=_meant(place.database)) if place.database else place


def _meant(path: str) -> str:
    """Return the absolute path that is meant by one with `~` or `$NAME`, whatever the current directory is later."""
    named = os.path.expandvars(path)
    if unknown := re.search(r"\$(\w+|\{[^}]*\})", named):
        raise BadInput(f"ADVISOR_DATABASE_URL names {unknown.group()}, which is not set", _FORMS)
    at_home = named[1:] if named.startswith("/~") else named
    try:
        expanded = Path(at_home).expanduser()
    except RuntimeError:
        who = at_home.split("/")[0]
        raise BadInput(f"ADVISOR_DATABASE_URL names a home directory that is not known: {who}", _FORMS) from None
    return os.path.normpath(Path.cwd() / expanded)


def file_of(place: URL) -> Path | None:
    """Return the SQLite file, or None for a server and for a database in memory."""
    if place.get_backend_name() != "sqlite" or place.database in (None, "", ":memory:"):
        return None
    return Path(str(place.database))


def shown(place: URL) -> str:
    """Return a place for people, without what may be secret."""
    path = file_of(place)
    bare = place.set(drivername=place.get_backend_name(), query={})
    return str(path) if path else bare.render_as_string(hide_password=True)


def make_directory(place: URL) -> None:
    """Make the directory of a SQLite file. Raises StoreError where that can't be."""
    path = file_of(place)
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the directory of {path} can't be made: {error.strerror}") from error


def network_of(place: URL) -> str:
    """Return the kind of network file system that a SQLite file is on ("nfs4"), "" where it is on none or that is not known."""
    path = file_of(place)
    if path is None:
        return ""
    try:
        mounts = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        kind = _file_system(path.parent.resolve(), mounts)
    except OSError:
        return ""
    is_network = kind in _NETWORK or (kind.startswith("fuse.") and kind not in _LOCAL_FUSE)
    return kind if is_network else ""


def _file_system(folder: Path, mounts: Iterable[str]) -> str:
    """Return the type of the file system that a folder is on, from the lines of mountinfo (proc(5)): the innermost, the last."""
    found, depth = "", -1
    for line in mounts:
        before, _, after = line.partition(" - ")
        columns = before.split(" ")
        if len(columns) < 5 or not after:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), columns[4]))
        if (folder == point or point in folder.parents) and len(point.parts) >= depth:
            found, depth = after.split(" ")[0], len(point.parts)
    return found
