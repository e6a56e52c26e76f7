"""Folders for files that run as code: pickles of jobs and of their results."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path


class NotPrivate(ValueError):
    """Somebody else could put files where this user's are expected."""


def private_folder(parent: Path) -> Path:
    """Make a new folder in ``parent``, with a random name, that nobody but this user may read or write.

    What an earlier process, or the sender of a study folder, has left in ``parent`` is in other folders. Raises
    :class:`NotPrivate` where another user could replace ``parent``, or a folder above it: those must belong to this
    user or to root, and others may write there only under the sticky bit.
    """
    path = Path(os.path.realpath(parent))  # no link is followed later on, when somebody could have changed it
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    if hasattr(os, "getuid"):
        for folder in (path, *path.parents):
            _require_private(folder, parent, strict=folder == path)
    return Path(tempfile.mkdtemp(dir=path, prefix="driver-"))


def _require_private(folder: Path, parent: Path, *, strict: bool) -> None:
    found = folder.stat()
    remedy = f"Files in {parent} are run as code. Name a folder of your own (--scheduler folder=PATH)"
    if found.st_uid not in ((os.getuid(),) if strict else (os.getuid(), 0)):
        raise NotPrivate(f"{folder}: belongs to another user. {remedy}, or remove this one")
    sticky = bool(found.st_mode & stat.S_ISVTX) and not strict
    group = found.st_mode & stat.S_IWGRP and not _is_own_group(found.st_gid)
    if (group or found.st_mode & stat.S_IWOTH) and not sticky:
        raise NotPrivate(f"{folder}: others may write there. {remedy}, or forbid that (chmod go-w {folder})")


def _is_own_group(number: int) -> bool:
    """Whether a group is the one that many systems give to each user alone."""
    import grp  # not on Windows
    import pwd

    try:
        group, user = grp.getgrgid(number), pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return group.gr_gid == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
