"""Whether two printed texts say the same: equal words, and numbers to some percent."""

import re

NUMBER = re.compile(r"(?<![\w.])[-+−]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?: %)?")
# Rounding, and what is divided by it, are of another size on another machine.
ROUNDING = 1e-6, 1e10


def words(text):
    """The text without its numbers and without its spacing, line by line."""
    return [" ".join(NUMBER.sub("#", line).split()) for line in text.splitlines()]


def assert_says_the_same(printed, said, *, tolerance):
    """Numbers may be off by the tolerance, of what was said, or 0.01; shares by 3 %."""
    assert words(printed) == words(said)
    numbers = (NUMBER.findall(text.replace("−", "-")) for text in (printed, said))
    low, high = ROUNDING
    for ours, theirs in zip(*numbers, strict=True):
        a, b = (float(text.removesuffix(" %")) for text in (ours, theirs))
        is_rounding = max(abs(a), abs(b)) < low or min(abs(a), abs(b)) > high
        least = 3 if theirs.endswith("%") else 0.01
        close = abs(a - b) <= tolerance * abs(b) + least
        assert is_rounding or close, f"{ours}, where {theirs} was printed:\n{printed}"
