"""Tables: text by NumPy's reader, Arrow's files by pyarrow's, and columns of them."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffkm_jax._command_line.output import CommandError

Pair = tuple[np.ndarray, np.ndarray | None]


class Columns(NamedTuple):
    """Columns by name, or by number from 0.

    Attributes:
        points: Names of those to read, separated by commas, or None for all others.
        weights: Name of that of the weights, or None.
    """

    points: str | None = None
    weights: str | None = None

    def among(self, path: Path, names: Sequence[str], width: int) -> list[int]:
        """The numbers of the columns of points, and then that of the weights."""

        def number_of(name: str) -> int:
            if name in names:
                return names.index(name)
            if name.isdecimal() and int(name) < width:
                return int(name)
            listed = ", ".join(names[:9]) + ", ..." * (len(names) > 9)
            has = f"its header has {listed}" if names else "it has no header"
            raise CommandError(f"{path}: no column {name!r} of {width}; {has}")

        weights = [] if self.weights is None else [number_of(self.weights)]
        if self.points is None:
            return [i for i in range(width) if i not in weights] + weights
        return [number_of(name.strip()) for name in self.points.split(",")] + weights

    def parted(self, table: np.ndarray) -> Pair:
        """The points [n, d] and weights [n] of such columns."""
        return (table, None) if self.weights is None else (table[:, :-1], table[:, -1])


class Lines:
    """The lines of a text file, of which the last one read is known.

    Empty ones may only end it: they would be rows without numbers.
    """

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self.file, self.number, self.text = path, file, 0, ""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        empty = 0
        for number, text in enumerate(self.file, self.number + 1):
            if text.strip():
                if empty:
                    raise CommandError(f"{self.path}: line {empty} is empty")
                self.number, self.text = number, text
                return text
            empty = empty or number
        raise StopIteration


def read_text(
    path: Path, columns: Columns, header: bool, delimiter: str | None
) -> Pair:
    """The numbers in a text file; a first line without any is a header, too."""
    delimiter = delimiter or {".csv": ",", ".tsv": "\t"}.get(path.suffix.lower())

    def fields_of(line: str) -> list[str]:
        if delimiter is None:
            return line.split()
        return next(csv.reader([line.strip("\r\n")], delimiter=delimiter), [])

    with path.open(encoding="utf-8-sig") as file:
        lines, names = Lines(path, file), []
        first = next(lines, "")
        fields = fields_of(first)
        if header or (any(fields) and not any(map(is_number, fields))):
            names, first = [name.strip() for name in fields], next(lines, "")
        if not first:
            return np.zeros((0, len(fields))), None
        width = len(fields)
        if len(fields_of(first)) != width:
            raise CommandError(fault(lines, fields_of, width, range(width), names))
        usecols = columns.among(path, names, width)
        try:
            table = np.loadtxt(
                chain([first], lines),
                delimiter=delimiter,
                comments=None,
                quotechar='"',
                ndmin=2,
                usecols=usecols,
            )
        except UnicodeDecodeError:
            raise
        except ValueError as error:
            found = fault(lines, fields_of, width, usecols, names)
            raise CommandError(found or f"{path}: {error}") from error
    return columns.parted(table)


def fault(
    lines: Lines,
    fields_of: Any,
    width: int,
    columns: Sequence[int],
    names: Sequence[str],
) -> str:
    """What is wrong with the last line read; empty where that is not known."""
    row = lines.number - 1 - bool(names)
    where = f"{lines.path}: row {row} (the first is 0; line {lines.number})"
    fields = fields_of(lines.text)
    if len(fields) != width:
        what = f" must have {width} fields as the first line, got {len(fields)}"
        return f"{where}{what}{hint(lines.text)}"
    for column in columns:
        field = fields[column]
        if not is_number(field):
            what = f"is not a number: {field!r}" if field.strip() else "is empty"
            return f"{where}, column {column} {what}{hint(field)}"
    return ""


def hint(text: str) -> str:
    """What may be meant to part the fields of a text."""
    for sign in (";", "\t", "|"):
        if sign in text:
            said = "tab" if sign == "\t" else f"'{sign}'"
            return f" (see --delimiter {said})"
    return ""


def is_number(field: str) -> bool:
    """Whether a field is a number; NaN and infinity are, and 1_0 is none."""
    try:
        float(field)
    except ValueError:
        return False
    return "_" not in field


def read_arrow(path: Path, columns: Columns) -> Pair:
    """The numbers in a file of pyarrow's."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        needs = 'pyarrow: pip install "diffkm[parquet]"'
        raise CommandError(f"{path}: {path.suffix} is read by {needs}") from error
    table: Any
    if path.suffix.lower() == ".parquet":
        table = parquet.read_table(path)
    else:
        with pa.memory_map(str(path)) as file:
            try:
                table = pa.ipc.open_file(file).read_all()
            except pa.ArrowInvalid:
                file.seek(0)
                table = pa.ipc.open_stream(file).read_all()
    names = table.column_names
    chosen = columns.among(path, names, len(names))
    types = [table.schema.types[i] for i in chosen]
    floats = all(pa.types.is_float32(t) or pa.types.is_float16(t) for t in types)
    found = np.empty((len(table), len(chosen)), np.float32 if floats else np.float64)
    is_of = pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean
    for place, (i, kind) in enumerate(zip(chosen, types, strict=True)):
        where, column = f"column {i} ({names[i]})", table.column(i)
        if not any(is_kind(kind) for is_kind in (*is_of, pa.types.is_decimal)):
            got = f"got {where} of {kind}: see --columns"
            raise CommandError(f"{path}: points must be real numbers, {got}")
        if column.null_count:
            row = column.is_null().index(True).as_py()
            at = f"row {row} (the first is 0), {where}"
            raise CommandError(f"{path}: {at} is empty")
        found[:, place] = column.to_numpy()
    return columns.parted(found)
