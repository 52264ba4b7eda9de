"""Tables: text by NumPy's reader, Arrow's files by pyarrow's, and columns of them."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffkm_jax._command_line.output import CommandError, say


class Table(NamedTuple):
    """What a table has.

    Attributes:
        points: [n, d].
        weights: [n], or None.
        names: Of the columns of points, [d], or none.
    """

    points: np.ndarray
    weights: np.ndarray | None = None
    names: Sequence[str] = ()


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
            if names.count(name) > 1:
                raise CommandError(
                    f"{path}: {name!r} is twice in its header: use numbers"
                )
            if name in names:
                return names.index(name)
            if name.isdecimal() and int(name) < width:
                return int(name)
            listed = ", ".join(names[:9]) + ", ..." * (len(names) > 9)
            has = f"its header has {listed}" if names else "see --header: it has none"
            raise CommandError(f"{path}: no column {name!r} of {width}; {has}")

        weights = [] if self.weights is None else [number_of(self.weights)]
        if self.points is None:
            if names and not names[0].strip() and 0 not in weights:
                say(
                    f"warning: {path}: column 0 has no name: if it numbers the rows, "
                    "choose the others by --columns"
                )
            return [i for i in range(width) if i not in weights] + weights
        chosen = [number_of(name.strip()) for name in self.points.split(",")] + weights
        for i, column in enumerate(chosen):
            if column in chosen[:i]:
                raise CommandError(f"{path}: column {column} is given twice")
        return chosen

    def parted(self, table: np.ndarray, names: Sequence[str]) -> Table:
        """The points, weights and names of such columns."""
        if self.weights is None:
            return Table(table, None, names)
        return Table(table[:, :-1], table[:, -1], names[:-1])


class Lines:
    """The lines of a text file, of one number of fields, of which the last is known.

    Empty ones may only end it: they would be rows without numbers.
    """

    def __init__(self, path: Path, file: Any, delimiter: str | None) -> None:
        self.path, self.file, self.delimiter = path, file, delimiter
        self.number, self.text, self.width = 0, "", 0
        self.names: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        empty = 0
        for number, text in enumerate(self.file, self.number + 1):
            if text.strip():
                if empty:
                    raise CommandError(f"{self.path}: line {empty} is empty")
                self.check(number, text)
                self.number, self.text = number, text
                return text
            empty = empty or number
        raise StopIteration

    def check(self, number: int, text: str) -> None:
        """Raises unless a line has as many fields as the first."""
        if self.delimiter is None:
            width = len(text.split())
        elif '"' in text:
            if text.count('"') % 2:
                raise CommandError(f"{self.where(number)} has a quote without its end")
            width = len(self.fields_of(text))
        else:
            width = text.count(self.delimiter) + 1
        if self.width and width != self.width:
            what = f"must have {self.width} fields as the first line, got {width}"
            hint = delimiter_in(text, self.delimiter)
            hint = hint or delimiter_in(self.text, self.delimiter)
            raise CommandError(f"{self.where(number)} {what}{hint}")

    def where(self, number: int) -> str:
        """Where a line is, as all that is said of it begins."""
        row = number - 1 - bool(self.names)
        return f"{self.path}: row {row} (the first is 0; line {number})"

    def fields_of(self, text: str) -> list[str]:
        """The fields of a line."""
        if self.delimiter is None:
            return text.split()
        return next(csv.reader([text.strip("\r\n")], delimiter=self.delimiter), [])

    def begin(self, header: bool) -> str:
        """The first line of numbers, after that of names, if there is one."""
        first = next(self, "")
        fields = self.fields_of(first)
        self.width = len(fields)
        numbers = [float(field) for field in fields if is_number(field)]
        is_text = any(fields) and len(numbers) < len(fields)
        if header or (is_text and not any(map(math.isfinite, numbers))):
            self.names = [name.strip() for name in fields]
            first = next(self, "")
        return first

    def fault(self, columns: Sequence[int], columns_are_given: bool) -> str:
        """What is wrong with the last line; empty where that is not known."""
        fields, where = self.fields_of(self.text), self.where(self.number)
        for column in columns:
            field = fields[column]
            if is_number(field):
                continue
            if not field.strip():
                return f"{where}, column {column} is empty"
            hint = delimiter_in(field, self.delimiter)
            is_first = self.number == 1 + bool(self.names)
            if not hint and is_first and not columns_are_given:
                hint = f" (see {'' if self.names else '--header, '}--columns)"
            return f"{where}, column {column} is not a number: {field!r}{hint}"
        return ""


def read_text(
    path: Path, columns: Columns, header: bool, delimiter: str | None
) -> Table:
    """The numbers in a text file; a first line without any is a header, too."""
    delimiter = delimiter or {".csv": ",", ".tsv": "\t"}.get(path.suffix.lower())
    with path.open(encoding="utf-8-sig") as file:
        lines = Lines(path, file, delimiter)
        first = lines.begin(header)
        if not first:
            return Table(np.zeros((0, lines.width)))
        usecols = columns.among(path, lines.names, lines.width)
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
            found = lines.fault(usecols, columns.points is not None)
            raise CommandError(found or f"{path}: {error}") from error
    names = [lines.names[i] for i in usecols] if lines.names else []
    return columns.parted(table, names)


def delimiter_in(text: str, delimiter: str | None) -> str:
    """What may be meant to part the fields of a text; empty if nothing is seen."""
    for sign in (";", "\t", "|"):
        if sign in text and sign != delimiter:
            said = "tab" if sign == "\t" else f"'{sign}'"
            return f" (see --delimiter {said})"
    if "," in text and delimiter != ",":
        return " (see --delimiter ','; a decimal sign is a point)"
    return ""


def is_number(field: str) -> bool:
    """Whether a field is a number; NaN and infinity are, and 1_0 is none."""
    try:
        float(field)
    except ValueError:
        return False
    return "_" not in field and field.isascii()


def read_arrow(path: Path, columns: Columns) -> Table:
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
    return columns.parted(found, [names[i] for i in chosen])
