"""A disk of a few hundred kilobytes, of this process and those that it forks. Linux, as root."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path

_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS
_READ_ONLY, _REMOUNT, _ALL, _PRIVATE = 1, 32, 16384, 1 << 18  # MS_RDONLY, MS_REMOUNT, MS_REC, MS_PRIVATE


class NoDisk(OSError):
    """Mounts are not permitted here."""


class SmallDisk:
    """A file system in memory, mounted at `folder` in a name space of its own: no other process sees it, and it goes
    with the last process that does. Raises NoDisk."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._checked(self._libc.unshare(_NEW_MOUNTS))
        self._mount(b"none", b"/", None, _ALL | _PRIVATE, None)
        self._mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode())

    def resize(self, size: int, read_only: bool = False) -> None:
        """bytes, in pages of 4 KiB."""
        flags = _REMOUNT | (_READ_ONLY if read_only else 0)
        self._mount(b"tmpfs", os.fsencode(self.folder), b"tmpfs", flags, f"size={size}".encode())

    @property
    def used(self) -> int:
        """bytes"""
        state = os.statvfs(self.folder)
        return (state.f_blocks - state.f_bfree) * state.f_frsize

    def _mount(self, source: bytes, target: bytes, kind: bytes | None, flags: int, data: bytes | None) -> None:
        self._checked(self._libc.mount(source, target, kind, ctypes.c_ulong(flags), data))

    def _checked(self, status: int) -> None:
        if status:
            number = ctypes.get_errno()
            raise NoDisk(number, os.strerror(number))


def contents(folder: Path) -> Mapping[str, bytes]:
    """Every file below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
