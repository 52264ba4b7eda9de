"""A search for faults: every public function, under what users do to functions.

`python -m tests.campaign` runs the whole, `--sample` a fixed part of it, and names of
parts (transforms, invariances, extremes, faults) those parts. Functions are found by
introspection, with small arrays that all of them share: see `_subjects`.
"""

# Part: its module; of a sample, one in how many groups, and of their cells.
PARTS = {
    "transforms": ("_transforms", 10, 8),
    "invariances": ("_invariances", 1, 8),
    "extremes": ("_extremes", 8, 8),
    "faults": ("_faults", 1, 2),
    "agreement": ("_agreement", 1, 10),
}
