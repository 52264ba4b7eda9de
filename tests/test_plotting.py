"""Pictures: what is drawn is what results say, on the axes given, and nothing else."""

import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pytest
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import diffkm_jax as dk
import diffkm_torch as dt
from diffkm_jax import estimators as es
from diffkm_jax import plotting
from diffkm_jax.plotting._axes import line_style

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 2)) + 6 * RNG.integers(0, 2, size=(60, 1))
WIDE = RNG.normal(size=(50, 5)) * [1, 5, 1, 3, 1] + 7
FIT = dk.fit(X, X[:3])
STREAM = dk.fit_stream([X[:30], X[30:]], X[:3], passes=9)
TARGET = jnp.array([0.1, 0.7, 0.2])
TAUS = [0.5, 1.0, 2.0]
KS = [3, 2, 4]


def cost(row):
    return (row @ TARGET) ** 2


def evaluated(records, **options):
    key, grid = jax.random.key(0), options.pop("grid", {"tau": TAUS})
    logits = options.pop("logits", jnp.array([0.3, -0.2, 0.5]))
    return dk.evaluate(key, cost, logits, records, grid=grid, num_samples=50, **options)


REPORTS = evaluated([es.gumbel_softmax(), es.straight_through(), es.rloo()])
ONE = {
    "plot_choices": lambda **ax: plotting.plot_choices(KS, [9, 5, 7], **ax),
    "plot_clusters": lambda **ax: plotting.plot_clusters(
        X, FIT, path=X[:6].reshape(2, 3, 2), **ax
    ),
    "plot_losses": lambda **ax: plotting.plot_losses({"a": FIT, "b": STREAM}, **ax),
    "plot_memberships": lambda **ax: plotting.plot_memberships(
        dk.pairwise(X, FIT.centroids), TAUS, **ax
    ),
    "plot_reports": lambda **ax: plotting.plot_reports(REPORTS, **ax),
}
PANELS = {"plot_choices": 1, "plot_clusters": 1, "plot_losses": 2}
PANELS |= {"plot_memberships": 2, "plot_reports": 3}


def panels(number):
    """Axes of a figure that pyplot does not know."""
    axes = Figure(layout="constrained").subplots(1, number, squeeze=False)
    return axes[0]


def data(ax):
    """What the lines of axes hold, by label."""
    return {line.get_label(): np.asarray(line.get_xydata()) for line in ax.lines}


def settings():
    return dict(matplotlib.rcParams)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    pyplot.close("all")


@pytest.mark.parametrize("name", plotting.__all__)
def test_the_axes_given_are_drawn_on_and_returned(name):
    given, open_before = panels(PANELS[name]), pyplot.get_fignums()
    returned = ONE[name](ax=given if PANELS[name] > 1 else given[0])
    assert list(np.ravel(np.asarray(returned, object))) == list(given)
    assert all(ax.lines and ax.get_xlabel() + ax.get_ylabel() for ax in given)
    assert pyplot.get_fignums() == open_before
    assert len(given[0].figure.axes) == PANELS[name]


@pytest.mark.parametrize("name", plotting.__all__)
def test_without_axes_there_is_one_new_figure_and_no_other_is_drawn_on(name):
    other = pyplot.figure().subplots()
    settings_before, backend = settings(), matplotlib.get_backend()
    axes = np.ravel(np.asarray(ONE[name](), object))
    assert len(pyplot.get_fignums()) == 2
    assert not other.lines
    assert len({ax.figure for ax in axes}) == 1
    assert all(isinstance(ax, Axes) for ax in axes)
    assert len(axes) == PANELS[name]
    assert settings() == settings_before
    assert matplotlib.get_backend() == backend


@pytest.mark.parametrize("name", plotting.__all__)
def test_nothing_is_shown(name, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("shown")

    monkeypatch.setattr(pyplot, "show", refuse)
    monkeypatch.setattr(Figure, "show", refuse)
    ONE[name]()


@pytest.mark.parametrize("name", plotting.__all__)
def test_a_picture_can_be_written_and_no_text_is_cut(name):
    axes = ONE[name]()
    figure = np.ravel(np.asarray(axes, object))[0].figure
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    for ax in figure.axes:
        texts = [ax.xaxis.label, ax.yaxis.label, ax.title]
        legends = [*figure.legends, *filter(None, [ax.get_legend()])]
        for part in [*(text for text in texts if text.get_text()), *legends]:
            box = part.get_window_extent(renderer)
            assert box.x0 >= 0
            assert box.y0 >= 0
            assert box.x1 <= figure.bbox.x1
            assert box.y1 <= figure.bbox.y1


@pytest.mark.parametrize("number", [1, 6])
@pytest.mark.parametrize("length", [0, 1, 2, 4])
def test_a_legend_of_long_names_stays_in_the_figure(number, length):
    names = [f"{i}{'straight_through_' * length}" for i in range(number)]
    loss, _ = plotting.plot_losses([FIT] * number, labels=names)
    FigureCanvasAgg(loss.figure).draw()
    box = loss.figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= loss.figure.bbox.x1


@pytest.mark.parametrize("name", plotting.__all__)
def test_lines_of_one_picture_differ_without_their_colors(name):
    for ax in np.ravel(np.asarray(ONE[name](), object)):
        named = [a for a in ax.lines if not a.get_label().startswith("_")]
        looks = [(a.get_linestyle(), a.get_marker(), a.get_fillstyle()) for a in named]
        assert len({*looks}) == len(looks)


def test_the_first_lines_differ_in_color_in_dashes_and_in_markers_each():
    styles = [line_style(i) for i in range(30)]
    for name in ("color", "linestyle", "marker"):
        assert len({str(style[name]) for style in styles[:5]}) == 5
    assert len({(s["color"], str(s["linestyle"])) for s in styles}) == 30


def test_pictures_need_neither_torch_nor_pyplot_where_axes_are_given():
    program = (
        "import sys; import jax.numpy as jnp; from matplotlib.figure import Figure;"
        "import diffkm_jax as dk; from diffkm_jax import plotting;"
        "x = jnp.array([[0.0, 1.0], [5.0, 1.0]]); fit = dk.fit(x, x);"
        "plotting.plot_losses(fit, ax=Figure().subplots(1, 2));"
        "plotting.plot_clusters(x, fit, ax=Figure().subplots());"
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_without_matplotlib_the_error_says_what_to_install():
    program = (
        "import sys; sys.modules['matplotlib'] = None; import diffkm_jax\n"
        "try:\n    from diffkm_jax import plotting\n"
        "except ImportError as error:\n    print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert run.stdout == (
        "diffkm_jax.plotting needs matplotlib, which is not installed: "
        'pip install "diffkm[plot]"\n'
    )


def test_importing_the_package_imports_no_pictures():
    program = "import sys, diffkm_jax; assert 'diffkm_jax.plotting' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


# Losses.


def test_losses_are_the_history_of_the_steps_taken():
    fits = {"a": FIT, "b": dk.fit(X, X[:3], optimizer=optax.sgd(0.004), max_steps=7)}
    loss, above = plotting.plot_losses(fits)
    least = min(float(fit.history.min()) for fit in fits.values())
    for line, other, fit in zip(loss.lines, above.lines, fits.values(), strict=True):
        history = np.asarray(fit.history)[: int(fit.num_steps) + 1]
        np.testing.assert_array_equal(line.get_xdata(), np.arange(len(history)))
        np.testing.assert_array_equal(line.get_ydata(), history)
        gap = history - least
        np.testing.assert_array_equal(other.get_ydata(), np.where(gap > 0, gap, np.nan))
    assert above.get_yscale() == "log"
    assert above.get_ylabel() == "loss above the least of all"


def test_the_legend_says_steps_and_the_final_residual():
    loss, _ = plotting.plot_losses(FIT, labels="Lloyd", ax=panels(2))
    [text] = loss.get_legend().get_texts()
    steps, residual = int(FIT.num_steps), float(FIT.residual)
    assert text.get_text() == f"Lloyd: {steps} steps, residual {residual:.2g}"
    loss, _ = plotting.plot_losses([FIT, dk.fit(X, X[:3], max_steps=1)])
    texts = [text.get_text() for text in loss.figure.legends[0].get_texts()]
    assert texts[0].startswith("fit 0: ")
    assert texts[1].startswith("fit 1: 1 step, ")


def residuals_of(fit):
    def step(state, _):
        new, stats = dk.update(X, state)
        moves = stats.shifts / stats.counts[:, None]
        return new, jnp.sum(moves**2)

    return jax.lax.scan(step, dk.init(X[:3]), None, length=int(fit.num_steps))[1]


def test_residuals_are_drawn_up_to_that_of_the_result():
    found = residuals_of(FIT)
    whole = np.append(found, FIT.residual)
    for given, results in [
        (found, FIT),
        ([found], [FIT]),
        ({"a": found}, {"a": FIT}),
        (found.tolist(), FIT),
    ]:
        wanted = given if not isinstance(given, list) or results is not FIT else [given]
        _, below = plotting.plot_losses(results, residuals=wanted)
        drawn = below.lines[0].get_ydata()
        np.testing.assert_array_equal(drawn, np.where(whole > 0, whole, np.nan))
        assert below.get_ylabel() == "residual"


def test_losses_of_streams_of_passes_and_of_batches_are_their_history():
    batches = dk.fit_stream([X[:30], X[30:]], X[:3])
    for stream in (STREAM, batches):
        loss, _ = plotting.plot_losses(stream)
        np.testing.assert_array_equal(loss.lines[0].get_ydata(), stream.history)
        steps = np.arange(1.0, stream.num_steps + 1)
        _, below = plotting.plot_losses(stream, residuals=steps)
        drawn = below.lines[0].get_ydata()
        np.testing.assert_array_equal(drawn[: len(steps)], steps)
        assert len(drawn) == len(stream.history)


def test_losses_of_torch_are_drawn_alike():
    x = torch.tensor(X, requires_grad=True)
    fit = dt.fit(x, x[:3].detach())
    loss, _ = plotting.plot_losses(fit)
    np.testing.assert_allclose(loss.lines[0].get_ydata(), fit_history(), rtol=1e-12)


def fit_history():
    return np.asarray(FIT.history)[: int(FIT.num_steps) + 1]


def test_a_fit_without_a_finite_loss_is_an_empty_line():
    bad = dk.fit(np.full((4, 1), np.nan), np.zeros((1, 1)))
    loss, above = plotting.plot_losses(bad)
    assert not np.isfinite(loss.lines[0].get_ydata()).any()
    above.figure.canvas.draw()


BATCH = jax.vmap(lambda c: dk.fit(X, c))(jnp.stack([X[:3], X[3:6]]))


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ([3], {}, TypeError, "^results must be results of fits, got int as 'fit'$"),
        ([[FIT, 3]], {}, TypeError, "^results must be .*, got int as 'fit 1'$"),
        ([[]], {}, ValueError, "^results must have at least one, got none$"),
        ([{}], {}, ValueError, "^results must have at least one, got none$"),
        ([BATCH], {}, ValueError, r"^results must be of one fit .*got shape \(2,\)$"),
        ([FIT], {"labels": ["a", "b"]}, ValueError, "^labels must be 1 different"),
        ([[FIT, FIT]], {"labels": ["a", "a"]}, ValueError, "^labels must be 2 diff"),
        ([{"a": FIT}], {"labels": ["a"]}, ValueError, "^labels must be None for a map"),
        ([FIT], {"residuals": [1, 2]}, ValueError, "^residuals must be of the 1 fits"),
        (
            [{"a": FIT}],
            {"residuals": {"b": [1.0]}},
            ValueError,
            "^residuals must be of the 1 fits a, as",
        ),
        (
            [FIT],
            {"residuals": np.ones(99)},
            ValueError,
            r"^residuals must be \[num_steps\] with num_steps = .* of fit, got shape",
        ),
        ([FIT], {"residuals": np.array(["a"])}, TypeError, "^residuals must be an arr"),
    ],
)
def test_losses_refuse(args, options, error, message):
    with pytest.raises(error, match=message):
        plotting.plot_losses(*args, **options)


def test_a_traced_result_is_refused():
    def traced(x):
        plotting.plot_losses(dk.fit(x, X[:3], max_steps=2))

    with pytest.raises(TypeError, match=r"^results must not be traced: return it"):
        jax.jit(traced)(X)


# Clusters.


def test_clusters_are_their_points_and_centroids():
    ax = plotting.plot_clusters(X, FIT)
    *groups, centroids = ax.lines
    labels = np.asarray(FIT.labels)
    assert len({str(line.get_marker()) for line in groups}) == 3
    for j, line in enumerate(groups):
        np.testing.assert_array_equal(line.get_xydata(), X[labels == j])
    np.testing.assert_array_equal(centroids.get_xydata(), FIT.centroids)
    assert [text.get_text() for text in ax.texts] == ["0", "1", "2"]
    places = [text.get_position() for text in ax.texts]
    np.testing.assert_array_equal(places, FIT.centroids)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("feature 0", "feature 1")
    assert ax.get_aspect() == 1


def test_clusters_of_every_kind_of_array_and_result_are_alike():
    x, fit = torch.tensor(X), dt.fit(torch.tensor(X), torch.tensor(X[:3]))
    sklearn = SimpleNamespace(
        cluster_centers_=np.asarray(FIT.centroids), labels_=np.asarray(FIT.labels)
    )
    wanted = [line.get_xydata() for line in plotting.plot_clusters(X, FIT).lines]
    for points, result, options in [
        (jnp.asarray(X), FIT, {}),
        (x, fit, {}),
        (X.tolist(), sklearn, {}),
        (X, STREAM, {"labels": dk.assign(X, STREAM.centroids)}),
    ]:
        ax = plotting.plot_clusters(points, result, **options)
        for line, want in zip(ax.lines, wanted, strict=True):
            np.testing.assert_allclose(line.get_xydata(), want, rtol=1e-9)


def test_paths_are_drawn_from_their_start():
    path = np.stack([X[:3], X[3:6], X[6:9], np.asarray(FIT.centroids)])
    ax = plotting.plot_clusters(X, FIT, path=path)
    drawn = [line for line in ax.lines if line.get_color() == "black"]
    for j in range(3):
        np.testing.assert_array_equal(drawn[j].get_xydata(), path[:, j])
    np.testing.assert_array_equal(data(ax)["its start"], path[0])
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["path of a centroid", "its start", "centroid"]


def test_more_dimensions_are_projected_on_principal_components():
    fit = dk.fit(WIDE, WIDE[:2])
    path = np.stack([WIDE[:2], np.asarray(fit.centroids)])
    ax = plotting.plot_clusters(WIDE, fit, path=path)
    centred = WIDE - WIDE.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    first, second = vectors[:, -1], vectors[:, -2]
    signs = [np.sign(v[np.abs(v).argmax()]) for v in (first, second)]
    plane = np.stack([first, second], axis=1) * signs
    drawn, labels = np.empty((len(WIDE), 2)), np.asarray(fit.labels)
    for j in range(2):
        drawn[labels == j] = ax.lines[j].get_xydata()
    np.testing.assert_allclose(drawn, centred @ plane, atol=1e-10)
    centroids = (np.asarray(fit.centroids) - WIDE.mean(0)) @ plane
    np.testing.assert_allclose(data(ax)["centroid"], centroids, atol=1e-10)
    start = (WIDE[:2] - WIDE.mean(0)) @ plane
    np.testing.assert_allclose(data(ax)["its start"], start, atol=1e-10)
    shares = 100 * values[::-1] / values.sum()
    for i, name in enumerate([ax.get_xlabel(), ax.get_ylabel()]):
        said = f"principal component {i + 1} ({shares[i]:.0f} % of the variance)"
        assert name == said


def test_few_points_of_many_dimensions_are_projected():
    x = RNG.normal(size=(2, 30000))
    ax = plotting.plot_clusters(x, dk.fit(x, x))
    assert ax.get_xlabel() == "principal component 1 (100 % of the variance)"
    assert ax.get_ylabel() == "principal component 2 (0 % of the variance)"


def test_the_shares_of_few_points_are_of_squares():
    x = np.zeros((4, 30))
    x[:2, 7], x[2:, 11] = [3, -3], [1, -1]
    ax = plotting.plot_clusters(x, dk.fit(x, x[:1]))
    np.testing.assert_allclose(ax.lines[0].get_xdata(), x[:, 7], atol=1e-12)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), x[:, 11], atol=1e-12)
    assert ax.get_xlabel() == "principal component 1 (90 % of the variance)"
    assert ax.get_ylabel() == "principal component 2 (10 % of the variance)"


@pytest.mark.parametrize("feature", range(5))
def test_the_largest_part_of_a_component_is_positive(feature):
    scales = np.ones(5)
    scales[feature] = 30
    x = np.random.default_rng(feature).normal(size=(40, 5)) * scales
    ax = plotting.plot_clusters(x, dk.fit(x, x[:1]))
    assert np.corrcoef(ax.lines[0].get_xdata(), x[:, feature])[0, 1] > 0.99


def test_equal_points_are_projected_on_one():
    x = np.ones((4, 3))
    ax = plotting.plot_clusters(x, dk.fit(x, x[:1]))
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), np.zeros((4, 2)))


def test_rows_that_are_not_finite_do_not_move_the_others():
    x = np.vstack([WIDE, np.full((1, 5), np.nan)])
    weights = np.append(np.ones(len(WIDE)), 0.0)
    fit = dk.fit(x, WIDE[:2], weights=weights)
    ax, without = plotting.plot_clusters(x, fit), dk.fit(WIDE, WIDE[:2])
    wanted = plotting.plot_clusters(WIDE, without).lines
    for line, want in zip(ax.lines, wanted, strict=True):
        found = line.get_xydata()
        found = found[np.isfinite(found).all(1)]
        np.testing.assert_allclose(found, want.get_xydata(), atol=1e-10)


def test_a_cluster_that_holds_nothing_finite_has_no_number():
    centroids = np.array([[0.0, 0.0], [np.nan, 1.0]])
    result = SimpleNamespace(centroids=centroids, labels=np.zeros(60, int))
    ax = plotting.plot_clusters(X, result)
    assert [text.get_text() for text in ax.texts] == ["0"]
    ax.figure.canvas.draw()


def test_clusters_that_are_not_active_are_not_drawn():
    active = jnp.array([True, False, True])
    fit = dk.fit(X, X[:3], active=active)
    path = np.stack([X[:3], np.asarray(fit.centroids)])
    ax = plotting.plot_clusters(X, fit, active=active, path=path)
    assert [text.get_text() for text in ax.texts] == ["0", "2"]
    for name in ("centroid", "its start"):
        is_drawn = np.isfinite(data(ax)[name]).all(axis=1)
        np.testing.assert_array_equal(is_drawn, active)


def test_many_points_are_one_image_for_print_and_many_clusters_have_no_numbers():
    x = RNG.normal(size=(3000, 2))
    result = SimpleNamespace(centroids=x[:60], labels=np.arange(3000) % 60)
    ax = plotting.plot_clusters(x, result)
    assert all(line.get_rasterized() for line in ax.lines[:-1])
    assert len(ax.lines) == 61
    assert len(ax.texts) == 0
    assert not plotting.plot_clusters(X, FIT).lines[0].get_rasterized()


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ([X[:, 0], FIT], {}, ValueError, r"^points must be \[n, d\], got shape \(60,"),
        ([X[:, :1], FIT], {}, ValueError, r"^points must be \[n, d\] with d at least"),
        ([X + 1j, FIT], {}, TypeError, "^points must be an array of real numbers, got"),
        ([[[1.0], [1.0, 2.0]], FIT], {}, TypeError, "^points must be an array of real"),
        ([np.nan * X, FIT], {}, ValueError, "^points must have a finite row, got none"),
        ([X, 3], {}, TypeError, "^result must have centroids, as of fit, got int$"),
        ([WIDE, FIT], {}, ValueError, r"^result must be of one fit, of centroids \[k"),
        ([X, STREAM], {}, ValueError, "^result must have labels; of a StreamResult "),
        ([X[:9], FIT], {}, ValueError, r"^result must be of labels \[n\] with n = 9,"),
        ([X, FIT], {"labels": [0]}, ValueError, r"^labels must be of labels \[n\] wit"),
        (
            [X, FIT],
            {"labels": np.full(60, 3)},
            ValueError,
            "^labels must be of labels from 0 to 2, got some from 3 to 3$",
        ),
        (
            [X, FIT],
            {"labels": np.full(60, 0.5)},
            ValueError,
            "^labels must be of labels from 0 to 2",
        ),
        ([X, FIT], {"active": [True]}, ValueError, r"^active must be \[k\] with k = 3"),
        ([X, FIT], {"active": "no"}, TypeError, "^active must be an array of real num"),
        ([X, FIT], {"path": "no"}, TypeError, "^path must be an array of real numbers"),
        ([X, FIT], {"labels": "no"}, TypeError, "^labels must be an array of real num"),
        ([X, FIT], {"path": X[:3]}, ValueError, r"^path must be \[steps, k, d\] with "),
        ([X, FIT], {"ax": 3}, TypeError, "^ax must be 1 matplotlib Axes, as .* int$"),
    ],
)
def test_clusters_refuse(args, options, error, message):
    with pytest.raises(error, match=message):
        plotting.plot_clusters(*args, **options)


# Memberships.


def test_memberships_are_those_of_the_softmax():
    distances, temperatures = dk.pairwise(X, FIT.centroids), [0.1, 1.0, 30.0]
    largest, effective = plotting.plot_memberships(distances, temperatures)
    for i, temperature in enumerate(temperatures):
        shares = np.asarray(dk.softmax(-distances, tau=temperature))
        entropy = -np.sum(jax.scipy.special.xlogy(shares, shares), axis=1)
        for ax, values in [
            (largest, shares.max(1)),
            (effective, np.exp(entropy)),
        ]:
            x, mean = ax.lines[0].get_data()
            np.testing.assert_allclose(x[i], temperature)
            np.testing.assert_allclose(mean[i], values.mean(), rtol=1e-9)
            band = ax.collections[0].get_paths()[0].vertices
            here = band[np.isclose(band[:, 0], temperature), 1]
            deciles = np.quantile(values, [0.1, 0.9])
            np.testing.assert_allclose([here.min(), here.max()], deciles, rtol=1e-9)
    assert largest.lines[1].get_ydata()[0] == 1 / 3
    assert effective.lines[1].get_ydata()[0] == 3
    assert largest.get_xscale() == effective.get_xscale() == "log"


def test_memberships_are_drawn_in_order_of_temperature():
    largest, _ = plotting.plot_memberships([[0.0, 1.0]], [2.0, 0.5])
    np.testing.assert_array_equal(largest.lines[0].get_xdata(), [0.5, 2.0])


def test_memberships_of_extreme_temperatures_are_their_limits():
    distances = [[0.0, 1.0, 1e300], [2.0, 2.0, 2.0]]
    largest, effective = plotting.plot_memberships(distances, [1e-250, 1e250])
    np.testing.assert_allclose(largest.lines[0].get_ydata()[0], (1 + 1 / 3) / 2)
    np.testing.assert_allclose(effective.lines[0].get_ydata()[0], (1 + 3) / 2)
    np.testing.assert_allclose(effective.lines[0].get_ydata()[1], (2 + 3) / 2)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ([[1.0], [1.0]], {}, ValueError, r"^distances must be \[n, k\], got shape \(1"),
        ([np.ones((0, 2)), [1.0]], {}, ValueError, "^distances must have a row and a"),
        ([[[np.inf]], [1.0]], {}, ValueError, "^distances must be finite .*, got inf$"),
        ([[[-1.0]], [1.0]], {}, ValueError, "^distances .* not negative, got -1.0$"),
        ([["a"], [1.0]], {}, TypeError, "^distances must be an array of real numbers"),
        (
            [[[1.0]], 1.0],
            {},
            ValueError,
            r"^temperatures must be \[m\], got shape \(\)",
        ),
        ([[[1.0]], []], {}, ValueError, "^temperatures must be positive .*, got none$"),
        ([[[1.0]], [0.0]], {}, ValueError, r"^temperatures must be .*, got \[0\.0\]$"),
        ([[[1.0]], [np.inf]], {}, ValueError, r"^temperatures must be .* got \[inf\]$"),
        (
            [[[1.0]], [1.0]],
            {"ax": panels(3)},
            ValueError,
            r"^ax must be 2 .*Axes, as plt.subplots\(1, 2\)\[1\], or None, got 3$",
        ),
        ([[[1.0]], [1.0]], {"ax": "ab"}, TypeError, "^ax must be 2 .*, got str$"),
    ],
)
def test_memberships_refuse(args, options, error, message):
    with pytest.raises(error, match=message):
        plotting.plot_memberships(*args, **options)


# Reports.


def test_reports_are_drawn_as_they_are_printed():
    axes = plotting.plot_reports(REPORTS)
    for report in REPORTS:
        bias = np.linalg.norm(report.bias, axis=-1)
        rounding = 1e-12
        wanted = {
            "bias": np.where(bias < rounding, 0, bias),
            "deviation": np.sqrt(report.total_variance),
            "cosine": np.asarray(report.cosine),
        }
        for ax, want in zip(axes, wanted.values(), strict=True):
            line = data(ax)[report.label.name]
            np.testing.assert_array_equal(line[:, 0], TAUS)
            np.testing.assert_allclose(line[:, 1], want, atol=1e-9)
    assert len(axes[2].lines) == len(REPORTS) + 1


def test_a_deviation_of_zero_has_a_place_on_a_logarithmic_axis():
    _, with_zero, _ = plotting.plot_reports(REPORTS)
    low, _ = with_zero.get_ylim()
    assert (with_zero.get_yscale(), low < 0) == ("symlog", True)
    _, without, _ = plotting.plot_reports(REPORTS[0])
    assert without.get_yscale() == "log"


def test_a_sampled_bias_has_the_bars_of_its_error_and_an_enumerated_one_none():
    bias, _, _ = plotting.plot_reports(REPORTS)
    [bars] = bias.containers
    [segments] = bars.lines[2]
    found = np.array([segment[:, 1] for segment in segments.get_segments()])
    report = REPORTS[0]
    length = np.linalg.norm(report.bias, axis=-1)
    error = np.linalg.norm(report.bias_error, axis=-1)
    wanted = np.stack([length - error, length + error], axis=1)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_problems_of_a_report_are_one_vector():
    logits = jnp.array([[0.3, -0.2, 0.5], [1.0, 0.0, 0.0]])
    report = evaluated(es.gumbel_softmax(), logits=logits)
    bias, deviation, cosine = plotting.plot_reports(report)
    of_bias = np.linalg.norm(np.reshape(report.bias, (3, -1)), axis=-1)
    np.testing.assert_allclose(bias.lines[0].get_ydata(), of_bias)
    of_all = np.sqrt(np.sum(report.total_variance, axis=1))
    np.testing.assert_allclose(deviation.lines[0].get_ydata(), of_all)
    mean, exact = (np.reshape(a, (3, -1)) for a in (report.mean, report.exact))
    lengths = np.linalg.norm(mean, axis=1) * np.linalg.norm(exact, axis=1)
    angle = np.sum(mean * exact, axis=1) / lengths
    np.testing.assert_allclose(cosine.lines[0].get_ydata(), angle)


def test_another_setting_and_its_order_and_its_scale():
    grid = {"baseline": [1.0, -1.0, 0.0]}
    report = evaluated(es.reinforce(), grid=grid)
    bias, deviation, _ = plotting.plot_reports([report], setting="baseline")
    np.testing.assert_array_equal(deviation.lines[0].get_xdata(), [-1, 0, 1])
    of_all = np.sqrt(report.total_variance)[jnp.array([1, 2, 0])]
    np.testing.assert_allclose(deviation.lines[0].get_ydata(), of_all)
    assert (bias.get_xlabel(), bias.get_xscale()) == ("baseline", "linear")
    assert plotting.plot_reports(REPORTS)[0].get_xscale() == "log"


def names_of(reports, **options):
    bias, _, _ = plotting.plot_reports(reports, **options)
    return [text.get_text() for text in bias.figure.legends[0].get_texts()]


def test_estimators_of_one_name_are_told_apart():
    gapped = es.gapped_straight_through
    records = [gapped(), gapped(gap=None), gapped(gap=2.0), es.reinmax()]
    gaps = [f"gapped_straight_through, gap={gap}" for gap in ("1", "None", "2")]
    assert names_of(evaluated(records)) == [*gaps, "reinmax"]
    records = [es.reinmax(), es.rloo(num_samples=2), es.rloo(num_samples=3)]
    reports = evaluated(records)
    assert names_of(reports) == ["reinmax", "rloo, 1", "rloo, 2"]
    assert names_of(reports, labels=["a", "b", "c"]) == ["a", "b", "c"]
    assert names_of(dict(zip("xyz", reports, strict=True))) == ["x", "y", "z"]
    assert names_of(reports[0], labels="mine") == ["mine"]


SINGLE = evaluated(es.reinmax(), grid=None)
OTHER = evaluated(es.rloo(), grid=None)._replace(exact=jnp.ones((2, 3)))


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ([3], {}, TypeError, "^reports must be what evaluate returns, got int$"),
        ([[3]], {}, TypeError, "^reports must be what evaluate returns, got int$"),
        ([[]], {}, ValueError, "^reports must have at least one, got none$"),
        (
            [SINGLE],
            {},
            ValueError,
            "^reports must have the one axis of a grid, got 0 i",
        ),
        ([REPORTS[2]], {}, ValueError, "^reports must be over a grid of tau, as eval"),
        (
            [REPORTS],
            {"setting": "eta"},
            ValueError,
            "^reports must be over a grid of e",
        ),
        (
            [[REPORTS[0], OTHER]],
            {},
            ValueError,
            "^reports must be over one grid, got 2 ",
        ),
        ([REPORTS], {"ax": panels(2)}, ValueError, "^ax must be 3 matplotlib Axes"),
        ([REPORTS], {"ax": 3}, TypeError, "^ax must be 3 matplotlib Axes"),
    ],
)
def test_reports_refuse(args, options, error, message):
    with pytest.raises(error, match=message):
        plotting.plot_reports(*args, **options)


def test_traced_reports_are_refused():
    def traced(logits):
        plotting.plot_reports(evaluated(es.reinmax(), logits=logits))

    with pytest.raises(TypeError, match=r"^reports must not be traced: return them"):
        jax.jit(traced)(jnp.zeros(3))


# Choices of k.


def test_choices_are_drawn_in_order_of_k_with_the_best_marked():
    scores = {
        "silhouettes": ([0.5, 0.4, 0.3], "largest at k = 3"),
        "davies_bouldins": ([0.5, 0.4, 0.7], "least at k = 2"),
        "calinski_harabaszs": ([5.0, 4.0, 9.0], "largest at k = 4"),
        "bics": ([-5.0, np.nan, 9.0], "least at k = 3"),
    }
    given = {name: values for name, (values, _) in scores.items()}
    axes = plotting.plot_choices(jnp.array(KS), torch.tensor([5.0, 9.0, 4.0]), **given)
    np.testing.assert_array_equal(
        axes[0].lines[0].get_xydata(), [[2, 9], [3, 5], [4, 4]]
    )
    assert len(axes[0].lines) == 1
    for ax, (values, title) in zip(axes[1:], scores.values(), strict=True):
        line, ring = ax.lines
        np.testing.assert_array_equal(line.get_xdata(), [2, 3, 4])
        np.testing.assert_array_equal(line.get_ydata(), np.array(values)[[1, 0, 2]])
        assert ax.get_title() == title
        k = float(title.split()[-1])
        np.testing.assert_array_equal(ring.get_xydata(), [[k, values[KS.index(k)]]])
    names = [ax.get_ylabel() for ax in axes]
    assert names == [
        "inertia",
        "silhouette",
        "Davies–Bouldin",
        "Calinski–Harabasz",
        "BIC",
    ]


class Series:
    """What pandas and others have: a dtype of their own, and an array."""

    dtype = "int64[pyarrow]"

    def __array__(self, dtype=None, copy=None):
        return np.array(KS, dtype)


def test_columns_of_tables_are_arrays():
    axes = plotting.plot_choices(Series(), Series())
    np.testing.assert_array_equal(axes[0].lines[0].get_xdata(), [2, 3, 4])


def test_a_list_of_tensors_with_a_gradient_is_refused():
    tensors = [torch.ones((), requires_grad=True)]
    with pytest.raises(TypeError, match=r"^ks must be an array of real numbers, got"):
        plotting.plot_choices(tensors, [1.0])


def test_only_scores_that_are_given_have_panels():
    assert len(plotting.plot_choices(KS, [1, 2, 3])) == 1
    axes = plotting.plot_choices(KS, [1, 2, 3], bics=[np.nan] * 3)
    assert [len(ax.lines) for ax in axes] == [1, 1]


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ([2, [1.0]], {}, ValueError, r"^ks must be \[m\], got shape \(\)$"),
        ([["a"], [1.0]], {}, TypeError, "^ks must be an array of real numbers"),
        ([[], []], {}, ValueError, r"^ks must be different integers .*, got \[\]$"),
        ([[2, 2], [1, 2]], {}, ValueError, "^ks must be different integers from 1 on"),
        ([[0, 2], [1, 2]], {}, ValueError, "^ks must be different integers from 1 on"),
        ([[2.5], [1]], {}, ValueError, "^ks must be different integers from 1 on, got"),
        (
            [[2, 3], [1]],
            {},
            ValueError,
            r"^inertias must be \[m\] with m = 2 as ks, got",
        ),
        ([[2], [1]], {"bics": [1, 2]}, ValueError, r"^bics must be \[m\] with m = 1"),
        (
            [[2], [1]],
            {"silhouettes": ["a"]},
            TypeError,
            "^silhouettes must be an array",
        ),
        ([[2], [1]], {"ax": panels(2)}, ValueError, "^ax must be 1 matplotlib Axes"),
        ([[2], [1]], {"ax": "a"}, TypeError, "^ax must be 1 matplotlib Axes"),
    ],
)
def test_choices_refuse(args, options, error, message):
    with pytest.raises(error, match=message):
        plotting.plot_choices(*args, **options)
