"""Reading log files: JSON lines, arrays, or objects one after the other, perhaps gzipped; counts what is unreadable."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from ...errors import OptionError, TerselyError
from .formats import Fields, RecordedOutput, RowError, read_row

_PEEK = 50  # lines of which one has to be an object of JSON lines
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_GZIP = b"\x1f\x8b"
_BROKEN = re.compile("[\udc80-\udcff]")  # bytes that are not UTF-8, as `surrogateescape` decodes them
_BETWEEN = re.compile(r"[\s,\[\]]*")
_ACCEPTED = (
    "accepted: JSON lines or a JSON array of chat completions, Responses, Anthropic messages, {request, response} "
    "pairs, records of `tersely run --trace`, or rows whose thinking and answer are named by --thinking-field and "
    "--answer-field"
)


class LogError(TerselyError, ValueError, code="nothing_readable"):
    """A log cannot be read, or nothing in it can be replayed."""


@dataclass(frozen=True, slots=True)
class RecordedSet:
    """The recorded outputs of one file, and how many rows were left out by reason."""

    name: str
    rows: list[RecordedOutput]
    left_out: Counter[str]


@dataclass(frozen=True, slots=True)
class LogOptions:
    """The options of commands that read logs."""

    logs: Annotated[list[Path], typer.Argument(metavar="LOGS", help="Files of recorded outputs; each is a set.")]
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The model's tokenizer.json or its folder; by default a simple one of ours."),
    ] = None
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum outputs per file.")] = None
    question_field: Annotated[str | None, typer.Option(help="Field of the question.")] = None
    thinking_field: Annotated[str | None, typer.Option(help="Field of the thinking.")] = None
    answer_field: Annotated[str | None, typer.Option(help="Field of the model's answer.")] = None
    gold_field: Annotated[str | None, typer.Option(help="Field of the right answer, e.g. metadata.gold.")] = None

    def load(self) -> list[RecordedSet]:
        """The outputs of all files; raises LogError, and OptionError for a file that is given twice."""
        named = {kind: getattr(self, f"{kind}_field") for kind in ("question", "thinking", "answer", "gold")}
        fields = Fields(**{kind: (name,) for kind, name in named.items() if name is not None})
        return [load_set(path, name, fields, self.limit) for path, name in _name_sets(self.logs)]


def _name_sets(logs: Sequence[Path]) -> list[tuple[Path, str]]:
    """Each file with its name, which is its path where two have the same; raises OptionError for one given twice."""
    if len({path.resolve() for path in logs}) < len(logs):
        raise OptionError("a file is given twice; accepted: each at most once", code="repeated_value")
    stems = Counter(path.stem for path in logs)
    return [(path, path.stem if stems[path.stem] == 1 else str(path)) for path in logs]


def load_set(path: Path, name: str, fields: Fields, limit: int | None) -> RecordedSet:
    """Read the first `limit` outputs of a file; raises LogError where there are none."""
    rows, left_out, keys = list[RecordedOutput](), Counter[str](), dict[str, None]()
    for number, row in enumerate(_iterate(path), 1):
        keys |= dict.fromkeys(row) if isinstance(row, dict) else {}
        try:
            if isinstance(row, RowError):
                raise row
            rows += read_row(row, fields, str(number))
        except (RowError, RecursionError) as reason:
            left_out[str(reason) if isinstance(reason, RowError) else "nested too deeply"] += 1
        if limit is not None and len(rows) >= limit:
            break
    if not left_out and not rows:
        raise LogError(f"{path} is empty; {_ACCEPTED}", code="empty_log")
    if not rows:
        found = ", ".join(f"{reason} ({count})" for reason, count in left_out.most_common())
        named = f", with the fields {', '.join(islice(keys, 12))}" if keys else ""
        raise LogError(f"{path} has nothing to replay; its rows are: {found}{named}; {_ACCEPTED}")
    for kind, (wanted, *_) in asdict(fields).items():
        if wanted != getattr(Fields(), kind)[0] and not any(getattr(one, kind) for one in rows):
            raise LogError(
                f"none of {len(rows)} rows of {path} has text in {wanted!r}, the field of --{kind}-field; they have "
                f"{', '.join(islice(keys, 12))}",
                code="missing_field",
            )
    return RecordedSet(name, rows[:limit], left_out)


def _iterate(path: Path) -> Iterator[Any]:
    """The values of a file; a RowError (not raised) stands for one that cannot be read. Raises LogError."""
    if not path.exists():
        raise LogError(f"file {str(path)!r} does not exist; check the path", code="no_such_file")
    if path.is_dir():
        raise LogError(f"{path} is a folder; accepted: files, e.g. {path}/*.jsonl", code="not_a_file")
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == _GZIP
        with gzip.open(path) if zipped else path.open("rb") as file:
            encoding = "utf-16" if file.read(2) in _UTF16 else "utf-8-sig"
        with (gzip.open if zipped else open)(path, "rt", encoding=encoding, errors="surrogateescape") as text:
            yield from _iterate_text(text)
    except (OSError, EOFError, UnicodeError) as error:
        raise LogError(
            f"{path} cannot be read: {error}; check the file and its permissions", code="unreadable"
        ) from None


def _iterate_text(file: IO[str]) -> Iterator[Any]:
    start = list(islice(file, _PEEK))
    first = next(filter(str.strip, start), "")
    if first.lstrip().startswith("[") or not any(isinstance(_parse(line), dict) for line in start):
        yield from _iterate_values("".join(start) + file.read())
        return
    for lines in (start, file):
        yield from (_parse(line) for line in lines if line.strip())


def _parse(line: str) -> Any:
    if _BROKEN.search(line):
        return RowError("not UTF-8")
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return RowError("not JSON")


def _iterate_values(text: str) -> Iterator[Any]:
    """The values of one or several JSON documents; those of arrays one by one."""
    decoder, indent = json.JSONDecoder(), ""
    position = _skip(text, 0)
    if position < len(text):
        indent = re.escape(text[text.rfind("\n", 0, position) + 1 : position].lstrip("["))
    while position < len(text):
        try:
            value, position = decoder.raw_decode(text, position)
            yield value
        except (ValueError, RecursionError):
            yield RowError("not JSON")
            found = re.compile(rf"\n{indent}\{{").search(text, position + 1)
            position = found.end() - 1 if found else len(text)
        position = _skip(text, position)


def _skip(text: str, position: int) -> int:
    match = _BETWEEN.match(text, position)
    return match.end() if match else position
