"""Pictures of fits, memberships, reports and choices of k, by matplotlib.

Every function draws on the axes that it is given and returns them. Without any it makes
a figure by pyplot, which a notebook displays, `plt.show()` shows and `plt.close` takes
away; a program that makes many, or has no display, passes the axes of a
`matplotlib.figure.Figure`, and pyplot is not imported. Nothing is shown, and no setting
of matplotlib is changed. Colors differ to the color blind too, and what they tell apart
differs by a marker, a dash or a number besides.

Arrays are NumPy's, JAX's, torch's, or lists.
"""

try:
    import matplotlib as matplotlib
except ImportError as error:
    raise ImportError(
        "diffkm_jax.plotting needs matplotlib, which is not installed: "
        'pip install "diffkm[plot]"'
    ) from error

import diffkm_jax._public
from diffkm_jax.plotting._choices import plot_choices
from diffkm_jax.plotting._clusters import plot_clusters
from diffkm_jax.plotting._losses import plot_losses
from diffkm_jax.plotting._memberships import plot_memberships
from diffkm_jax.plotting._reports import plot_reports

__all__ = [
    "plot_choices",
    "plot_clusters",
    "plot_losses",
    "plot_memberships",
    "plot_reports",
]

diffkm_jax._public.show_public(__name__)
