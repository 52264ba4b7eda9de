"""The data that fits are tested on, and scikit-learn's fit of them."""

import jax.numpy as jnp
import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits

import diffkm_jax as dk

DIGITS = load_digits().data
X = jnp.asarray(np.random.default_rng(0).normal(size=(200, 3)))
C = X[:6]


def start(seed, k=10, data=DIGITS):
    """Rows of the data, off the integer grid: scikit-learn breaks exact ties anew."""
    rng = np.random.default_rng(seed)
    rows = data[rng.choice(len(data), k, replace=False)]
    return rows + 1e-3 * rng.normal(size=rows.shape)


def lloyd(data, c, tol=1e-4, weights=None, **options):
    model = KMeans(len(c), init=c, n_init=1, tol=tol, algorithm="lloyd", **options)
    return model.fit(data, sample_weight=weights)


def status(result):
    return dk.Status(int(result.status))
