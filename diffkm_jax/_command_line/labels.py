"""Labels, and memberships, in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from diffkm_jax._command_line.output import write


def write_labels(
    out: Path, labels: np.ndarray, memberships: np.ndarray | None = None
) -> None:
    """Writes labels [n] to a file of the kind that its name says.

    With memberships [n, k] too; in a .npy file instead.
    """
    suffix, rows = out.suffix.lower(), labels[:, None]
    names, formats = ["label"], ["%d"]
    if memberships is not None:
        rows = np.concatenate([rows, memberships], axis=1)
        names += [f"membership_{j}" for j in range(memberships.shape[1])]
        formats += ["%.17g"] * memberships.shape[1]
    if suffix == ".csv":
        header = ",".join(names)
        how = {"fmt": formats, "delimiter": ",", "header": header, "comments": ""}
        write(out, lambda file: np.savetxt(file, rows, **how))
    elif suffix == ".npy":
        array = labels if memberships is None else memberships
        write(out, lambda file: np.save(file, array))
    else:
        arrays: dict[str, Any] = {"labels": labels}
        if memberships is not None:
            arrays["memberships"] = memberships
        write(out, lambda file: np.savez(file, **arrays))
