"""Rows of a data source, each with its file and line, checked as they are read.

.jsonl .ndjson     an object a line                .json      a list of objects, or an object a line
.csv .tsv          a header, then a row a record   .parquet   a table
owner/name         the training split of a data set by hub name, or of a folder

Text is UTF-8, with or without a byte-order mark. A null or empty column counts as absent.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from vla.files.reading import JsonMapping, JsonObject

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
NUM_LISTED_FAULTS = 5
"""Number of skipped rows that the results list with their faults."""
MAX_FAULT_CHARACTERS = 600
"""Longest fault that is printed, in characters: a row may be very long."""
OnBadRow = Literal["error", "skip"]
T = TypeVar("T")


class RowError(ValueError):
    """A row that cannot be used; the message begins with its file and line."""


@dataclass(frozen=True)
class Row:
    """One row of a data source.

    `where` is its place for messages: file and line, or data set and number.
    """

    values: JsonMapping
    where: str


@dataclass
class SourceCount:
    """The counts of a source: its rows, the faults of skipped rows, and notes, each listed once."""

    num_rows: int = 0
    left_out: dict[str, None] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)


class RowReader:
    """A reader of sources that counts rows and skipped rows.

    With `on_bad_row` "error" the first bad row raises; with "skip" bad rows are skipped and
    counted. `setting` is the name of `on_bad_row` in messages.
    """

    def __init__(self, on_bad_row: OnBadRow = "error", setting: str = "text.on_bad_row") -> None:
        self.on_bad_row = on_bad_row
        self.setting = setting
        self.counts: dict[str, SourceCount] = {}
        self._reported: set[str] = set()

    def read(self, source: str, use: Callable[[Row], T]) -> list[T]:
        """The results of `use` on every row; a ValueError of `use` marks a bad row.

        Raises ValueError with the row, and when no row can be used.
        """
        count = self.counts.setdefault(source, SourceCount())
        used = list[T]()
        count.num_rows = 0
        for row in scan_rows(source):
            count.num_rows += 1
            try:
                if isinstance(row, RowError):
                    raise row
                used.append(use(row))
            except ValueError as error:
                self.skip_row(source, str(error))
        if count.num_rows == 0:
            raise ValueError(f"{source} has no rows")
        if not used:
            raise ValueError(
                f"{source}: none of its {count.num_rows} rows can be used; the first: "
                f"{next(iter(count.left_out))}"
            )
        return used

    def skip_row(self, source: str, fault: str) -> None:
        """Count a bad row, or raise RowError by `on_bad_row`. `fault` begins with the row."""
        fault = fault.replace("\n", " ")
        fault = (
            fault
            if len(fault) <= MAX_FAULT_CHARACTERS
            else f"{fault[: MAX_FAULT_CHARACTERS - 3]}..."
        )
        if self.on_bad_row == "error":
            raise RowError(f"{fault} ({self.setting}=skip leaves such rows out and counts them)")
        self.counts.setdefault(source, SourceCount()).left_out[fault] = None

    def note(self, source: str, text: str) -> None:
        """Add a note about a source that is no fault, such as duplicates."""
        self.counts.setdefault(source, SourceCount()).notes[text] = None

    def report_repeats(self, source: str, contents: Sequence[Hashable]) -> None:
        """Note the number of repeated rows of a source; each of them counts."""
        again = len(contents) - len(set(contents))
        if again:
            self.note(source, f"{again} of {len(contents)} rows are repeats, each counts")

    def lines(self) -> list[str]:
        """One line for every fault count and note of a source."""
        lines = []
        for source, count in self.counts.items():
            if count.left_out:
                left_out = (
                    f"{len(count.left_out)} of {count.num_rows} rows left out ({self.setting}=skip)"
                )
                lines.append(f"{source}: {left_out}, the first: {next(iter(count.left_out))}")
            lines += [f"{source}: {note}" for note in count.notes]
        return lines

    def report_lines(self, write: Callable[[str], None]) -> None:
        """Write the lines that were not written before."""
        for line in self.lines():
            if line not in self._reported:
                self._reported.add(line)
                write(line)

    def results(self) -> JsonObject:
        """The counts by source for results.json, {"rows": {source: ...}}; empty where no source was
        read."""
        counts = {
            source: {
                "rows": count.num_rows,
                "left out": len(count.left_out),
                **(
                    {"first left out": list(count.left_out)[:NUM_LISTED_FAULTS]}
                    if count.left_out
                    else {}
                ),
                **({"notes": list(count.notes)} if count.notes else {}),
            }
            for source, count in self.counts.items()
        }
        return {"rows": counts} if counts else {}


def is_source(name: str) -> bool:
    """True for the name of a file or of a hub data set."""
    return "/" in name or Path(name).suffix.lower() in SUFFIXES


def read_rows(source: str) -> Iterator[Row]:
    """The rows of a source; RowError at the first bad one."""
    for row in scan_rows(source):
        if isinstance(row, RowError):
            raise row
        yield row


def scan_rows(source: str) -> Iterator[Row | RowError]:
    """The rows of a source, with a RowError in the place of each bad one.

    Raises ValueError for a source that cannot be read at all.
    """
    path = Path(source)
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            return _json_lines(_require_file(path))
        case ".json":
            return _json_file(_require_file(path))
        case ".csv" | ".tsv" as suffix:
            return _csv_rows(_require_file(path), "\t" if suffix == ".tsv" else ",")
        case ".parquet":
            return _parquet_rows(_require_file(path))
        case suffix if path.is_file():
            raise ValueError(
                f"{path}: the ending {suffix or '(none)'} is not read: give one of "
                f"{', '.join(SUFFIXES)}"
            )
        case _:
            return _hub_rows(source)


def _require_file(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist: give a file ({', '.join(SUFFIXES)}), or a data set by hub name"
        )
    return path


def _json_lines(path: Path) -> Iterator[Row | RowError]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield _parse_line(line, f"{path}, line {number}")


def _parse_line(line: bytes, where: str) -> Row | RowError:
    try:
        return _make_row(json.loads(_decode_utf8(line, where)), where)
    except RowError as error:
        return error
    except json.JSONDecodeError as error:
        return RowError(f"{where}: no JSON ({error.msg} at column {error.colno})")
    except (ValueError, RecursionError) as error:
        # Numbers of thousands of digits, or brackets nested thousands deep.
        return RowError(f"{where}: no JSON that can be read ({error})")


def _json_file(path: Path) -> Iterator[Row | RowError]:
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if not content.lstrip().startswith(b"["):
        yield from _json_lines(path)
        return
    try:
        values = json.loads(_decode_utf8(content, str(path)))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno}: no JSON ({error.msg} at column {error.colno})"
        ) from None
    except RecursionError as error:
        raise ValueError(f"{path}: no JSON that can be read ({error})") from None
    for number, entry in enumerate(values, start=1):
        yield _make_row(entry, f"{path}, entry {number}")


def _csv_rows(path: Path, delimiter: str) -> Iterator[Row | RowError]:
    """The rows of a CSV by its header; every value is a text.

    A row's line is the one on which it begins.
    """
    text = _decode_utf8(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), str(path))
    csv.field_size_limit(2**31 - 1)
    records = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        where = f"{path}, line {records.line_num + 1}"
        try:
            record = next(records, None)
        except csv.Error as error:
            raise ValueError(f"{where}: no CSV ({error})") from None
        if record is None:
            return
        if not record:
            continue
        if header is None:
            header = [name.strip() for name in record]
        elif len(record) != len(header):
            yield RowError(
                f"{where}: has {len(record)} values, the header names {len(header)} columns"
            )
        else:
            yield _make_row(
                dict(zip(header, (value or None for value in record), strict=True)), where
            )


def _parquet_rows(path: Path) -> Iterator[Row | RowError]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for values in batch.to_pylist():
                number += 1
                yield _make_row(_without_nulls(values), f"{path}, row {number}")
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"{path}: no parquet table that can be read, from row {number + 1} on ({reason})"
        ) from None


def _hub_rows(name: str) -> Iterator[Row | RowError]:
    from datasets import load_dataset  # type: ignore[attr-defined]

    try:
        dataset = load_dataset(name, split="train")
    except Exception as error:  # the library raises many kinds of errors for names and networks
        reason = str(error).split("\n")[0]
        raise ValueError(f"data set {name!r} cannot be loaded: {reason}") from error
    for number, values in enumerate(dataset, start=1):
        yield _make_row(_without_nulls(values), f"{name}, row {number}")


def _decode_utf8(content: bytes, where: str) -> str:
    """The text in UTF-8.

    Raises RowError with the line of the first invalid byte.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start)
        place = where if ", line " in where else f"{where}, line {line + 1}"
        raise RowError(
            f"{place}: not UTF-8 (byte 0x{content[error.start]:02x}): save the file as UTF-8"
        ) from None


def _make_row(values: object, where: str) -> Row | RowError:
    if not isinstance(values, Mapping):
        return RowError(
            f"{where}: a row must be an object with columns, not {type(values).__name__}"
        )
    columns = {name: value for name, value in values.items() if value is not None}
    if _has_half_character(columns):
        return RowError(
            f"{where}: holds half of a surrogate pair, which is no character: write the text as "
            "UTF-8"
        )
    return Row(columns, where)


def _without_nulls(value: object) -> object:
    """A value of a table without null fields.

    In a table every object has the fields of all others.
    """
    if isinstance(value, Mapping):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _has_half_character(value: object) -> bool:
    """True where a text in the value holds half of a surrogate pair, which cannot be encoded."""
    if isinstance(value, str):
        return not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, Mapping):
        return any(_has_half_character(part) for item in value.items() for part in item)
    return isinstance(value, list | tuple) and any(map(_has_half_character, value))
