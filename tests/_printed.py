"""Whether two printed texts say the same: equal words, and numbers to some percent."""

import re

NUMBER = re.compile(r"(?<![\w.])[-+−]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
# Below it a number is rounding, and of another size on another machine.
ROUNDING = 1e-6


def words(text):
    """The text without its numbers and without its spacing, line by line."""
    return [" ".join(NUMBER.sub("#", line).split()) for line in text.splitlines()]


def assert_says_the_same(printed, said, *, tolerance):
    """Numbers may differ by the tolerance, of what was said, or by 0.01."""
    assert words(printed) == words(said)
    numbers = (NUMBER.findall(text.replace("−", "-")) for text in (printed, said))
    for ours, theirs in zip(*numbers, strict=True):
        a, b = float(ours), float(theirs)
        is_rounding = max(abs(a), abs(b)) < ROUNDING
        close = abs(a - b) <= tolerance * abs(b) + 0.01
        assert is_rounding or close, f"{ours}, where {theirs} was printed:\n{printed}"
