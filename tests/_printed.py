"""Whether two printed texts say the same: equal words, and numbers to some percent."""

import re

NUMBER = re.compile(r"(?<![\w.])[-+−]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
# Rounding, what is divided by it, and what stands in a line with them: other numbers on
# another machine.
LOW, HIGH = 1e-6, 1e10


def words(text):
    """The text without its numbers and without its spacing, line by line."""
    return [" ".join(NUMBER.sub("#", line).split()) for line in text.splitlines()]


def assert_says_the_same(printed, said, *, tolerance):
    """Numbers may be off by the tolerance, of what was said, or 0.01; shares by 3 %."""
    assert words(printed) == words(said)
    for ours, theirs in zip(printed.splitlines(), said.splitlines(), strict=True):
        pairs = list(zip(*map(numbers, (ours, theirs)), strict=True))
        is_rounding = any(not LOW < abs(b) < HIGH for _, b in pairs if b)
        least = 3 if "%" in theirs else 0
        wrong = any(
            abs(a - b) > max(tolerance * abs(b) + 0.01, least) for a, b in pairs
        )
        assert is_rounding or not wrong, f"{ours!r}, where it was {theirs!r}"


def numbers(line):
    """The numbers of a line."""
    return [float(text) for text in NUMBER.findall(line.replace("−", "-"))]
