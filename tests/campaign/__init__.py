"""A search for faults: every public function, under what users do to functions.

`python -m tests.campaign` runs the whole, `--sample` a fixed part of it, and names of
parts (transforms, invariances, extremes, faults) those parts. Functions are found by
introspection, with small arrays that all of them share: see `_subjects`.
"""

# Part: its module, and one in how many cells a sample takes.
PARTS = {
    "transforms": ("_transforms", 90),
    "invariances": ("_invariances", 8),
    "extremes": ("_extremes", 40),
    "faults": ("_faults", 1),
}
