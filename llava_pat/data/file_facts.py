"""Whether a file is still the one that something was made from, mostly without reading it.

As git's index does it: size and time of change tell in nearly all cases. A file of the same size and another time (a
copy, a second download) is read, and its sha256 decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llava_pat.data.hashes import file_sha256


@dataclass(frozen=True)
class FileFacts:
    """A file when it was read. bytes -1: there was none."""

    bytes: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileFacts:
        """Reads the whole file. OSError when it cannot."""
        stat = path.stat()
        return cls(stat.st_size, stat.st_mtime_ns, file_sha256(path))

    def change(self, path: Path | None) -> str:
        """In which way what is at `path` now differs, both values; "" when it does not. None: there is no file now."""
        if path is None or self.bytes < 0:
            there, now = self.bytes >= 0, path is not None
            return "" if there == now else f"{_presence(there)} then, {_presence(now)} now"
        stat = path.stat()
        if stat.st_size != self.bytes:
            return f"{self.bytes} bytes then, {stat.st_size} now"
        if stat.st_mtime_ns == self.mtime_ns:
            return ""
        now = file_sha256(path)
        return "" if now == self.sha256 else f"sha256 {self.sha256[:12]} then, {now[:12]} now"


def _presence(is_there: bool) -> str:
    return "a file" if is_there else "missing (an empty image took its place)"


MISSING = FileFacts(-1, 0, "")
"""Of an image in whose place an empty one is trained on."""
