"""Writing and appending whole or not at all, and a log of finished work by which an interrupted run resumes."""

from __future__ import annotations

import json
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from safetensors import SafetensorError

from .errors import OptionError, TerselyError

T = TypeVar("T")
_HEAD, _SUM = "run", "crc32"  # keys of a line of a checkpoint log


class WriteError(TerselyError, OSError):
    """A file cannot be written."""


def write(path: Path, content: str | bytes) -> None:
    """Write a text or bytes whole or not at all; a link is followed. Raises WriteError."""
    goal = path.resolve()
    partial = goal.with_name(f"{goal.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(goal)
    except OSError as error:
        with suppress(OSError):  # as on a read-only file system
            partial.unlink(missing_ok=True)
        raise WriteError(f"{path} cannot be written: {error.strerror}; choose another place with --out") from None


def render_text(template: Path, **values: Any) -> str:
    """Render a template of a text for the terminal, in which the filter `f` formats: `{{ share | f(".1%") }}`."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters["f"] = format
    return environment.from_string(template.read_text(encoding="utf-8")).render(values).strip("\n")


def check_writable(path: Path, option: str = "--out") -> None:
    """Refuse, before any work is done, a place where a file cannot go; raises WriteError."""
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir():
        raise WriteError(f"{option} {path} cannot be written; accepted: a file in a folder that exists")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise WriteError(f"{option} {path} cannot be written: no permission; choose another place")


def check_replaceable(path: Path, is_ours: Callable[[Path], bool], option: str = "--out", otherwise: str = "") -> None:
    """Refuse a place where a file cannot go, or holds one that tersely did not write; raises WriteError, OptionError.

    An empty file may be replaced, a device never.
    """
    check_writable(path, option)
    if path.exists() and not (path.is_file() and (not path.stat().st_size or is_ours(path))):
        raise OptionError(
            f"{option} {path} was not written by tersely; accepted: a new file, or one that tersely wrote{otherwise}",
            code="overwrites_other_file",
        )


def begins_with_keys(path: Path, *keys: str) -> bool:
    """Return whether the first JSON value of a file is an object with these keys."""
    try:
        found, _ = json.JSONDecoder().raw_decode(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.keys() >= set(keys)


def check_new_folder(out: Path) -> None:
    """Refuse a folder to write that holds something already, or is a file; raises OptionError."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OptionError(f"{str(out)!r} is there already; accepted: a new folder, or an empty one")


def make_folder(folder: Path) -> None:
    """Create a folder, and those above it, unless it is there already; raises WriteError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"{folder} cannot be created: {error.strerror}; choose another folder") from None


@contextmanager
def atomic_dir(out: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `out` once that is done without an error; raises WriteError."""
    goal = out.resolve()  # a link is followed
    part, before = (goal.with_name(f"{goal.name}.{kind}") for kind in ("part", "before"))
    try:
        if before.exists() and not goal.exists():  # killed in between
            before.rename(goal)
        for left in (part, before):
            shutil.rmtree(left, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        share_files(part)
        if goal.exists():
            goal.rename(before)
        try:
            part.rename(goal)
        except OSError:
            if before.exists():
                before.rename(goal)
            raise
        shutil.rmtree(before, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, TerselyError) or not isinstance(error, OSError | SafetensorError):  # of a full disk
            raise
        raise WriteError(f"{out} cannot be written: {error}; choose another place") from None


def share_files(folder: Path) -> None:
    """Make files as readable as their new folder; those that safetensors writes are private."""
    mode = folder.stat().st_mode & 0o666
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)


def append_line(path: Path, line: bytes, *, to_disk: bool = False) -> None:
    """Append a line, whole or not at all; to_disk: return once it would survive a crash. Raises WriteError."""
    try:
        with path.open("ab+", buffering=0) as file:
            new = not os.fstat(file.fileno()).st_size
            _append(file, line + b"\n")
            if to_disk:
                os.fsync(file.fileno())
        if to_disk and new:
            _sync_folder(path.absolute().parent)
    except OSError as error:
        raise WriteError(f"{path} cannot be written: {error.strerror}; make room there") from None


def cut_line(path: Path, size: int, seen: int) -> None:
    """Cut an incomplete last line off at `size` bytes, unless the file has changed from `seen` bytes."""
    with path.open("rb+") as file:
        _lock(file)
        if os.fstat(file.fileno()).st_size == seen:
            file.truncate(size)


def _sync_folder(folder: Path) -> None:
    """Have a new file's name survive a crash, where folders can be opened."""
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _append(file: BinaryIO, line: bytes) -> None:
    """Append under a lock, so that two runs may share a file; what is written by half is taken back."""
    _lock(file)
    if not file.seekable():
        file.write(line)
        return
    end = file.seek(0, os.SEEK_END)
    if end:
        file.seek(end - 1)
        if file.read(1) != b"\n":
            line = b"\n" + line
    try:
        rest = memoryview(line)
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        with suppress(OSError):  # a device has nothing to take back
            file.truncate(end)
        raise


def _lock(file: BinaryIO) -> None:
    """Wait for others that append; released when the file is closed."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    fcntl.flock(file, fcntl.LOCK_EX)


@contextmanager
def announce_resume(place: Path | None, kept: Callable[[], Any]) -> Iterator[None]:
    """If a run stops that has kept something, say how to resume it; at no place, nothing is kept."""
    try:
        yield
    except BaseException:
        if kept():
            again = f"run the same command again to resume from {place}"
            print(f"stopped; {again if place else 'with --out FILE it could be resumed'}", file=sys.stderr)
        raise


class CheckpointLogError(TerselyError, ValueError, code="checkpoint_invalid"):
    """A checkpoint log cannot be resumed: it belongs to another run, or the file is not a checkpoint log."""


class CheckpointLog:
    """Finished pieces of work by key, in memory only if the path is None; `run` is everything that decides the results.

    The first line of the file identifies the run; each further one is a piece, synced before the next begins. An
    incomplete last line is dropped. Large results belong in files of their own. Raises CheckpointLogError if the file
    belongs to another run (code "checkpoint_mismatch"), or is something else.
    """

    def __init__(self, path: Path | None, run: Mapping[str, Any]) -> None:
        self.path = path
        self._head = {_HEAD: dict(run)}
        self.completed: dict[str, Any] = {}  # values of the finished pieces by key
        if path is not None and path.exists():
            self._read(path, json.loads(json.dumps(self._head)))

    def get_or_compute(self, key: str, compute: Callable[[], T]) -> T:
        """Return the stored value (JSON) of a piece, computing and storing it first if needed; raises WriteError."""
        if key not in self.completed:
            value = compute()
            line = json.dumps({"key": key, "value": value, _SUM: _checksum(key, value)})
            if self.path is not None:
                self._append(self.path, line)
            self.completed[key] = json.loads(line)["value"]  # as a resumed run would read it
        stored: T = self.completed[key]
        return stored

    def remove(self) -> None:
        """Delete the file once the results are saved elsewhere."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _append(self, path: Path, line: str) -> None:
        if not path.exists() or not path.stat().st_size:
            append_line(path, json.dumps(self._head).encode(), to_disk=True)
        append_line(path, line.encode(), to_disk=True)

    def _read(self, path: Path, head: dict[str, Any]) -> None:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise WriteError(f"cannot read checkpoint log {path}: {error.strerror}; check its permissions") from None
        complete = data[: data.rfind(b"\n") + 1]
        lines = [self._parse(line, number) for number, line in enumerate(complete.splitlines(), 1)]
        if lines:
            self._check_run(lines[0], head)
        elif not f'{{"{_HEAD}": '.encode().startswith(data[: len(_HEAD) + 5]):  # not even cut off by a crash
            raise CheckpointLogError(f"{path} is not a checkpoint log; move it away, or choose another --out")
        self.completed = {line["key"]: line["value"] for line in lines[1:]}
        if len(complete) < len(data):
            cut_line(path, len(complete), len(data))

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            item: Any = json.loads(line)
        except (ValueError, RecursionError):
            item = None
        expected, name = ({_HEAD}, _HEAD) if number == 1 else ({"key", "value", _SUM}, "key")
        kind = dict if number == 1 else str
        wrong = not isinstance(item, dict) or set(item) != expected or not isinstance(item[name], kind)
        if wrong or (number > 1 and item[_SUM] != _checksum(item["key"], item["value"])):
            raise CheckpointLogError(
                f"{self.path}, line {number}: not a line of a checkpoint log; move the file away, or choose another "
                "--out"
            )
        return dict(item)

    def _check_run(self, stored: dict[str, Any], head: dict[str, Any]) -> None:
        ours, theirs = head[_HEAD], stored[_HEAD]
        if ours == theirs:
            return
        keys = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
        pairs = [(key, theirs.get(key), ours.get(key)) for key in keys]
        plain = [pair for pair in pairs if not any(isinstance(value, dict | list) for value in pair)][:3]
        changes = "; ".join(f"{key} was {_shorten(was)}, now {_shorten(now)}" for key, was, now in plain)
        changes = changes or f"other {', '.join(keys)}"
        raise CheckpointLogError(
            f"checkpoint log {self.path} belongs to another run ({changes}); repeat that run to finish it, "
            "delete the file, or choose another --out",
            code="checkpoint_mismatch",
        )


def _checksum(key: str, value: Any) -> int:
    return zlib.crc32(json.dumps([key, value]).encode())


def _shorten(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def find_version(*packages: str) -> str | None:
    """The version of the first of these packages that is installed; None if none is."""
    for package in packages:
        with suppress(PackageNotFoundError):
            return version(package)
    return None
