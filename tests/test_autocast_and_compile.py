"""The torch functions and layers under autocast and torch.compile: nothing changes."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from problems import layer_data
from torch.testing import assert_close as close
from twins import exact, with_gradients

import diffkm_torch as dt

# Torch's own: its compiler makes an object of a Function and looks at .grad, its
# forward mode makes a script.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script"),
]

X, C, W, V = layer_data()
ROOT = V[:3]
MAHALANOBIS = dt.mahalanobis(ROOT @ ROOT.T)
LOSS, QUANTIZER = dt.KMeansLoss, dt.VectorQuantizer
bfloat16 = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
compiled = partial(torch.compile, backend="aot_eager", fullgraph=True)


@pytest.fixture(autouse=True)
def no_programs():
    """Forgets what torch has compiled."""
    torch.compiler.reset()


def soft(f, **options):
    return partial(f, temperature=0.7, **options)


def ending(x, c, **options):
    end = dt.fit(x, c, **options)
    return end.centroids, end.loss, end.counts


positive = soft(dt.statistics, distance=dt.kl_divergence)
FUNCTIONS = {
    "hard": dt.kmeans_loss,
    "soft": soft(dt.soft_kmeans_loss),
    "statistics": dt.statistics,
    "soft statistics": soft(dt.statistics, weights=W, block_size=10),
    "mahalanobis": lambda x, c: dt.pairwise(x, c, distance=MAHALANOBIS),
    "of another distance": soft(dt.soft_kmeans_loss, distance=MAHALANOBIS),
    "of directions": partial(dt.statistics, distance=dt.cosine),
    "of positive rows": lambda x, c: positive(x.exp(), c.exp()),
    "of any phi": soft(dt.statistics, distance=dt.bregman(lambda v: (v**4).sum())),
    "assigned": partial(dt.assigned_loss, assignment=dt.sinkhorn),
    "quantize": partial(dt.quantize, method=dt.rotation_trick),
    "nsvq": lambda x, c: dt.nsvq(x, c, V),
}
FITS = {
    "fit": ending,
    "soft fit": soft(ending, tol=1e-3),
    "unrolled": soft(ending, derivative="unrolled", max_steps=3),
}


@pytest.mark.parametrize("f", [*FUNCTIONS.values(), *FITS.values()])
def test_autocast_changes_neither_values_nor_gradients(f):
    expected = with_gradients(f, X, C)
    # The backward pass is inside as well.
    with bfloat16():
        found = with_gradients(f, X, C)
    close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("f", [soft(dt.soft_kmeans_loss), FUNCTIONS["mahalanobis"]])
def test_autocast_leaves_second_derivatives_and_transforms_alone(f):
    def total(c):
        return f(X, c).sum()

    def outcomes():
        both = torch.stack([C, 2 * C])
        return (
            torch.autograd.functional.hessian(total, C),
            torch.func.hessian(total)(C),
            torch.func.jvp(total, (C,), (C,)),
            torch.func.vmap(torch.func.grad(total))(both),
        )

    expected = outcomes()
    with bfloat16():
        found = outcomes()
    close(found, expected, rtol=1e-6, atol=1e-6)


def test_what_autocast_made_narrow_is_widened():
    layer = torch.nn.Linear(3, 3)
    with bfloat16():
        points = layer(X)
        loss = dt.KMeansLoss(C)(points)
    assert points.dtype == torch.bfloat16
    exact(loss, dt.kmeans_loss(points.float(), C))
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_compile_to_one_graph(name):
    f = FUNCTIONS[name]
    close(with_gradients(compiled(f), X, C), with_gradients(f, X, C))


@pytest.mark.parametrize("name", ["soft", "soft statistics", "mahalanobis"])
def test_a_compiled_function_keeps_float32_under_autocast(name):
    f = FUNCTIONS[name]
    with bfloat16():
        found = with_gradients(compiled(f), X, C)
    close(found, with_gradients(f, X, C), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize(
    "build", [LOSS, soft(LOSS), QUANTIZER, partial(QUANTIZER, decay=0.9)]
)
def test_layers_compile_to_one_graph_and_keep_their_state(build, mode):
    eager = build(C).train(mode)
    fast = deepcopy(eager)
    program = compiled(fast)
    for step in range(2):
        batch = X + step
        close(with_gradients(program, batch), with_gradients(eager, batch))
        close(dict(fast.state_dict()), dict(eager.state_dict()))


@pytest.mark.parametrize(
    "options",
    [
        {"decay": 0.9, "min_count": 1.0},
        {"decay": 0.9, "min_count": 1.0, "sample_temperature": 0.5},
        {"sample_temperature": torch.tensor(0.5)},
    ],
)
def test_layers_that_draw_compile_to_one_graph(options):
    far = torch.cat([C, C + 90])
    eager = QUANTIZER(far, **options)
    fast = deepcopy(eager)
    program = compiled(fast)
    for step in range(3):
        found = []
        for layer in (program, eager):
            torch.manual_seed(step)
            found.append(with_gradients(layer, X + step))
        close(*found)
        close(dict(fast.state_dict()), dict(eager.state_dict()))
    assert (eager.centroids.abs().max() < 50) == ("min_count" in options)


def test_another_temperature_tensor_compiles_nothing_anew():
    layer = dt.KMeansLoss(C, temperature=torch.tensor(1.0))
    program = compiled(layer)
    with torch.compiler.set_stance("default"):
        program(X)
    with torch.compiler.set_stance("fail_on_recompile"):
        for temperature in (0.5, 0.25):
            layer.temperature = torch.tensor(temperature)
            close(program(X), dt.soft_kmeans_loss(X, C, temperature=temperature))


@pytest.mark.parametrize("optimizer", [dt.newton(), dt.macqueen(), dt.ema(), dt.sgd(1)])
def test_an_update_compiles_to_one_graph(optimizer):
    state = dt.init(C, optimizer=optimizer)
    f = partial(dt.update, optimizer=optimizer)
    close(compiled(f)(X, state), f(X, state))


@pytest.mark.parametrize(
    ("optimizer", "distance"),
    [(dt.sgd(0.01), dt.manhattan), (dt.newton(), dt.cosine)],
)
def test_an_update_by_another_distance_compiles_to_one_graph(optimizer, distance):
    state = dt.init(C, optimizer=optimizer)
    f = partial(dt.update, optimizer=optimizer, distance=distance)
    close(compiled(f)(X, state), f(X, state))


@pytest.mark.parametrize("name", ["rebar", "blackbox", "implicit_mle"])
def test_estimators_that_differentiate_the_cost_keep_it_across_graph_breaks(name):
    estimator = getattr(dt.estimators, name)()
    noise = estimator.draw(torch.Generator().manual_seed(0), (24, 3))

    def costs(logits):
        return estimator.expect(lambda rows: (rows * V).sum(-1) ** 2, logits, noise)

    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(costs)(X)
    torch.compiler.reset()
    program = torch.compile(costs, backend="aot_eager")
    close(with_gradients(program, X), with_gradients(costs, X))


def test_a_fit_breaks_the_graph_and_keeps_its_values():
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(ending)(X, C)
    torch.compiler.reset()
    program = torch.compile(ending, backend="aot_eager")
    close(program(X, C, max_steps=3), ending(X, C, max_steps=3))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1024, 4096])
def test_the_default_backend_updates_a_codebook_by_all_points(rows):
    """It lost the points after the first 910, in one graph with the labels."""
    x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(0))
    layer = dt.VectorQuantizer(x[:512].clone(), decay=0.9)
    alone = deepcopy(layer)
    alone(x)
    torch.compile(layer, fullgraph=True)(x)
    close(layer.counts, alone.counts)
    close(layer.centroids, alone.centroids)
    assert round(layer.counts.sum().item()) == rows
