"""A plugin of pytest: scikit-learn's tests import our KMeans in place of theirs."""

import sklearn.cluster

from diffkm_jax.cluster import KMeans

sklearn.cluster.KMeans = KMeans


def pytest_collection_finish(session):
    """Fails unless it is ours that is tested."""
    assert {item.module.KMeans for item in session.items} == {KMeans}
