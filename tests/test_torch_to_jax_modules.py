"""torch_to_jax of modules: their parameters in JAX, their buffers where they are."""

import copy
import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn

import diffkm_jax as dk
import diffkm_torch as dt
from diffkm_torch.bridge import jax_to_torch, torch_to_jax

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),
    # Of a layer for attention torch.func has no rule, and says so.
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
]
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(6, 8)))
XT = torch.tensor(np.asarray(X))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def close(found, expected, rtol=1e-9):
    np.testing.assert_allclose(found, np.asarray(expected), rtol=rtol, atol=1e-11)


def slopes_of_torch(module, x=XT):
    """The gradients of the sum of squares in the parameters, by name, and in x."""
    x = x.clone().requires_grad_()
    named = {n: p for n, p in module.named_parameters() if p.requires_grad}
    cost = (first(module(x)) ** 2).sum()
    found = torch.autograd.grad(cost, [*named.values(), x])
    return dict(zip([*named, "x"], found, strict=True))


def first(output):
    return output[0] if isinstance(output, tuple) else output


def slopes_of_jax(module, x=X):
    fn, params = torch_to_jax(module)

    def cost(params, x):
        return (first(fn(params, x)) ** 2).sum()

    found, slope = jax.jit(jax.grad(cost, (0, 1)))(params, x)
    return found | {"x": slope}


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(8, 8, bias=False, dtype=torch.float64)
        self.decode = nn.Linear(8, 8, dtype=torch.float64)
        self.decode.weight = self.encode.weight
        self.again = self.encode

    def forward(self, x):
        return self.again(self.decode(self.encode(x).tanh()))


def batch_norm():
    norm = nn.BatchNorm1d(8).double()
    norm(XT)
    return norm.eval()


ROWS = XT[:, None]
ATTENTION = {"dim_feedforward": 16, "batch_first": True, "dtype": torch.float64}
MODULES = {
    "network": network,
    "tied": Tied,
    "batch norm": batch_norm,
    "dropout": lambda: nn.Sequential(network(), nn.Dropout()).eval(),
    "no dropout": lambda: nn.Sequential(network(), nn.Dropout(0.0)),
    "rrelu": lambda: nn.Sequential(network(), nn.RReLU()).eval(),
    "lstm": lambda: nn.LSTM(8, 3, num_layers=2, dtype=torch.float64),
    "attention": lambda: nn.TransformerEncoderLayer(8, 2, **ATTENTION).eval(),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(network()[0]),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(
        network()[0]
    ).eval(),
    "of this library": lambda: dt.KMeansLoss(XT[:3], temperature=0.5),
}


@pytest.mark.parametrize("name", MODULES)
def test_the_gradient_is_torchs_in_every_parameter_and_the_input(name):
    module = MODULES[name]()
    x = ROWS if name == "attention" else XT
    found = slopes_of_jax(module, jnp.asarray(x.numpy()))
    expected = slopes_of_torch(module, x)
    assert found.keys() == expected.keys()
    for entry, slope in expected.items():
        close(found[entry], slope)


@pytest.mark.parametrize("name", MODULES)
def test_many_inputs_and_many_parameters_are_mapped(name):
    fn, params = torch_to_jax(MODULES[name]())
    x = X[:, None] if name == "attention" else X
    xs = jnp.stack([x, 2 * x])
    found = jax.vmap(lambda x: first(fn(params, x)))(xs)
    several = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
    mapped = jax.vmap(lambda p: first(fn(p, x)))(several)
    for i in range(2):
        close(found[i], first(fn(params, xs[i])))
        own = jax.tree.map(lambda p, i=i: p[i], several)
        close(mapped[i], first(fn(own, x)))


def test_of_tied_parameters_no_call_leaves_its_own_in_the_module():
    fn, params = torch_to_jax(Tied())
    other = jax.tree.map(jnp.zeros_like, params)
    expected = fn(params, X)
    for given, value in ((other, 0 * X), (params, expected), (other, 0 * X)):
        close(fn(given, X), value)


def test_parameters_are_copies_by_the_names_of_torch():
    module = network()
    _, params = torch_to_jax(module)
    assert list(params) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    before = np.array(params["0.bias"])
    with torch.no_grad():
        module[0].bias.add_(1)
    close(params["0.bias"], before)
    assert isinstance(params["0.weight"], jax.Array)
    assert list(torch_to_jax(Tied())[1]) == ["encode.weight", "decode.bias"]


def test_the_module_is_as_it_was():
    module = batch_norm()
    before, entries = copy.deepcopy(module.state_dict()), dict(vars(module))
    fn, params = torch_to_jax(module)
    value = fn(params, X)
    assert vars(module) == entries
    for name, entry in module.state_dict().items():
        assert torch.equal(entry, before[name])
    module.train()
    module(XT + 3)
    close(fn(params, X), value)


def test_frozen_parameters_are_constants():
    module = network()
    module[0].requires_grad_(False)
    fn, params = torch_to_jax(module)
    assert list(params) == ["2.weight", "2.bias"]
    with torch.no_grad():
        value = module(XT)
        module[0].weight.zero_()
    close(fn(params, X), value)
    assert torch_to_jax(module.requires_grad_(False))[1] == {}


def test_other_arguments_pass():
    class Scaled(nn.Module):
        def forward(self, x, power, *, scale=1.0, flip=False):
            return (-1 if flip else 1) * scale * x**power

    fn, params = torch_to_jax(Scaled())
    close(fn(params, X, 2, scale=X[0], flip=True), -X[:1] * X**2)


def test_an_optimizer_of_jax_trains_it():
    fn, params = torch_to_jax(network())
    target, optimizer = X[:, :2], optax.sgd(0.02, momentum=0.9)

    def loss(params):
        return ((fn(params, X) - target) ** 2).sum()

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        value, slope = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(slope, state)
        return optax.apply_updates(params, updates), state, value

    state, values = optimizer.init(params), []
    for _ in range(60):
        params, state, value = step(params, state)
        values.append(float(value))
    assert values[-1] < 0.1 * values[0]


def test_threads_share_a_module_each_with_its_parameters():
    fn, params = torch_to_jax(network())
    found, value = {}, jax.jit(fn)
    scales = [1.0, 2.0, 3.0, 4.0]

    def work(scale):
        scaled = jax.tree.map(lambda p: scale * p, params)
        found[scale] = [np.asarray(value(scaled, X)) for _ in range(50)]

    threads = [threading.Thread(target=work, args=(s,), daemon=True) for s in scales]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for scale in scales:
        expected = fn(jax.tree.map(lambda p, s=scale: s * p, params), X)
        for rows in found[scale]:
            close(rows, expected)


class Cached(nn.Module):
    """It keeps what it computes in its first call."""

    def __init__(self):
        super().__init__()
        self.table = None

    def forward(self, x):
        if self.table is None:
            self.table = torch.arange(8, dtype=x.dtype)
        return x * self.table


def test_what_a_module_keeps_is_no_fake_tensor():
    fn, params = torch_to_jax(Cached())
    for _ in range(2):
        close(fn(params, X), X * jnp.arange(8.0)[None])
    close(fn(params, X[:2]), X[:2] * jnp.arange(8.0)[None])


class Branched(nn.Module):
    """Fake tensors do not know the branch."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) if x.sum() > -1e12 else x


class Counted(nn.Module):
    def __init__(self, in_place):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))
        self.in_place = in_place

    def forward(self, x):
        if self.in_place:
            self.calls += 1
        else:
            self.calls = self.calls + 1
        return x + self.calls


class OwnStatistics(nn.Module):
    """No counter of batches tells of what is kept."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(8, dtype=torch.float64))

    def forward(self, x):
        return nn.functional.batch_norm(x, self.mean, self.variance, training=True)


EDITS = {
    "batch norm": lambda: nn.BatchNorm1d(8).double(),
    "instance norm": lambda: nn.InstanceNorm1d(6, track_running_stats=True).double(),
    "statistics": OwnStatistics,
    "in place": lambda: Counted(True),
    "another tensor": lambda: Counted(False),
    "in a layer of this library": lambda: dt.VectorQuantizer(XT[:3], decay=0.9),
}
DRAWS = {
    "dropout": nn.Dropout,
    "attention": lambda: nn.TransformerEncoderLayer(8, 2, **ATTENTION),
    "rrelu": nn.RReLU,
}


@pytest.mark.parametrize("wrapped", [lambda m: m, Branched])
@pytest.mark.parametrize("name", EDITS)
def test_buffers_that_a_call_changes_are_refused(name, wrapped):
    fn, params = torch_to_jax(wrapped(EDITS[name]()))
    x = X[None] if name == "instance norm" else X
    for call in (fn, jax.jit(fn), jax.vmap(fn, (None, None), axis_size=2)):
        with pytest.raises(ValueError, match=r"edits buffers, by .*\.eval\(\)"):
            call(params, x)


@pytest.mark.parametrize("wrapped", [lambda m: m, Branched])
@pytest.mark.parametrize("name", DRAWS)
def test_what_draws_is_refused(name, wrapped):
    fn, params = torch_to_jax(wrapped(DRAWS[name]()))
    with pytest.raises(ValueError, match=r"draws by aten\..*\.eval\(\)"):
        fn(params, X[:, None] if name == "attention" else X)


def test_a_checkpoint_in_a_module_raises_and_gives_no_wrong_gradient():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            run = torch.utils.checkpoint.checkpoint
            return run(self.inner, x, use_reentrant=False)

    fn, params = torch_to_jax(Checkpointed())
    close(fn(params, X), network()(XT).detach())
    with pytest.raises(
        (jax.errors.JaxRuntimeError, ValueError),
        match="must be a matrix",
    ):
        jax.block_until_ready(jax.grad(lambda p: fn(p, X).sum())(params))


def test_parameters_of_another_module_are_refused():
    fn, params = torch_to_jax(network())
    fewer = {name: p for name, p in params.items() if name != "0.bias"}
    other = params | {"0.bias": params["0.bias"][:1]}
    for wrong in (fewer, other, params | {"more": X}):
        with pytest.raises(
            ValueError, match=r"params must have those of the module, .*"
        ):
            fn(wrong, X)
    with pytest.raises(TypeError, match=r"params must come first: the dictionary"):
        fn(X)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.LazyLinear(3), "weight has none: call it"),
        (nn.Linear(2, 3, device="meta"), r"weight is on meta: fn.cpu\(\)"),
        (nn.BatchNorm1d(2, affine=False, device="meta"), "running_mean is on meta"),
    ],
)
def test_modules_that_cannot_cross_are_refused(module, message):
    with pytest.raises(ValueError, match=message):
        torch_to_jax(module)


def test_a_module_that_calls_jax_has_its_gradient():
    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.centroids = nn.Parameter(XT[:3].clone())
            self.loss = jax_to_torch(dk.soft_kmeans_loss)

        def forward(self, x):
            return self.loss(x, self.centroids, temperature=0.5)

    fn, params = torch_to_jax(Loss())
    found = jax.jit(jax.grad(lambda p, x: fn(p, x), (0, 1)))(params, X)
    slope = jax.grad(partial(dk.soft_kmeans_loss, temperature=0.5), (1, 0))
    expected = slope(X, X[:3])
    close(found[0]["centroids"], expected[0])
    close(found[1], expected[1])
