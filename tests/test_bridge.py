"""jax_to_torch: JAX functions in torch's autograd, of any order, in any transform."""

import copy
import io
import pickle
import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from maps import noise_for
from torch._subclasses import FakeTensorMode

import diffkm_jax as dk
import diffkm_torch as dt
from diffkm_torch.bridge import jax_to_torch

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
RNG = np.random.default_rng(0)
X = torch.tensor(RNG.normal(size=(13, 3)))
C = torch.tensor(RNG.normal(size=(4, 3)))
Z, G = torch.tensor(RNG.normal(size=(6, 5))), torch.tensor(RNG.gumbel(size=(6, 5)))
SOFT = jax_to_torch(dk.soft_kmeans_loss)
loss = partial(SOFT, temperature=0.5)


def torch_saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def moving(*tensors):
    return [t.clone().requires_grad_() for t in tensors]


def test_the_soft_loss_passes_gradcheck_to_second_order_and_forward():
    arguments = moving(X, C, torch.tensor(0.7, dtype=torch.float64))

    def of_temperature(x, c, t):
        return SOFT(x, c, temperature=t)

    assert torch.autograd.gradcheck(of_temperature, arguments, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(
        of_temperature, arguments, check_fwd_over_rev=True
    )


@pytest.mark.parametrize("temperature", [None, 0.6])
def test_an_implicit_fit_passes_gradcheck(temperature):
    bridged = jax_to_torch(dk.fit)
    apart = 6 * torch.eye(4, 3, dtype=torch.float64)
    data = X + apart[torch.arange(13) % 4]

    def centroids(x, w):
        options = {"temperature": temperature, "tol": 1e-12, "max_steps": 500}
        return bridged(x, apart, weights=w, **options).centroids

    arguments = moving(data, torch.tensor(RNG.uniform(0.5, 1.5, 13)))
    assert torch.autograd.gradcheck(centroids, arguments)


def test_a_fit_comes_back_as_its_named_tuple():
    result = jax_to_torch(dk.fit)(X, C, temperature=0.5)
    theirs = dt.fit(X, C, temperature=0.5)
    torch.testing.assert_close(result.centroids, theirs.centroids)
    assert result.flags == dk.Status.CONVERGED
    assert torch.equal(result.labels.long(), theirs.labels)
    assert not result.labels.requires_grad


@pytest.mark.parametrize(
    ("transform", "batched"),
    [
        (torch.func.grad, False),
        (torch.func.hessian, False),
        (lambda f: torch.func.jacrev(torch.func.jacrev(f)), False),
        (lambda f: torch.func.jacrev(torch.func.jacfwd(f)), False),
        (lambda f: lambda c: torch.func.jvp(f, (c,), (c.cos(),))[1], False),
        (torch.func.vmap, True),
        (lambda f: torch.func.vmap(torch.func.grad(f)), True),
        (lambda f: torch.func.grad(lambda c: torch.func.vmap(f)(c).sum()), True),
    ],
)
def test_transforms_of_torch_func_give_what_they_give_of_torchs_own(transform, batched):
    c = torch.stack([C, 2 * C, C + 1]) if batched else C
    ours, theirs = partial(loss, X), partial(dt.soft_kmeans_loss, X, temperature=0.5)
    torch.testing.assert_close(transform(ours)(c), transform(theirs)(c))


def test_a_backward_pass_can_be_mapped_over_cotangents():
    softmax = jax_to_torch(dk.softmax)
    (z,) = moving(Z)
    rows = softmax(z, tau=0.5)
    cotangents = torch.tensor(RNG.normal(size=(7, 6, 5)))

    def pull(cotangent):
        return torch.autograd.grad(rows, z, cotangent, retain_graph=True)[0]

    expected = torch.stack([pull(c) for c in cotangents])
    torch.testing.assert_close(torch.func.vmap(pull)(cotangents), expected)


NAMES = ["straight_through", "gumbel_softmax", "reinmax", "gumbel_rao", "implicit_mle"]


@pytest.mark.parametrize("name", NAMES)
def test_maps_have_their_twins_gradient_and_gradient_penalty(name):
    noise = {k: torch.tensor(v) for k, v in noise_for(name, (6, 5)).items()}
    target = torch.tensor(RNG.normal(size=(6, 5)))
    found = []
    for rows in (jax_to_torch(getattr(dk, name)), getattr(dt, name)):
        (z,) = moving(Z)
        cost = ((rows(z, **noise) - target) ** 3).sum()
        (g,) = torch.autograd.grad(cost, z, create_graph=True)
        ((g**2).sum() + 0 * cost).backward()
        found.append((cost.detach(), g.detach(), z.grad))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["reinmax", "rloo", "rebar", "exact"])
def test_estimators_have_their_twins_gradient_and_gradient_penalty(name):
    ours, theirs = (getattr(m.estimators, name)() for m in (dk, dt))
    noise = torch.tensor(RNG.gumbel(size=(theirs.num_draws, 6, 5)))

    def cost(rows):
        return (rows**3).sum(-1) * rows[..., 0]

    def expected(z, g):
        return ours.expect(cost, z, g)

    found = []
    for f in (jax_to_torch(expected), partial(theirs.expect, cost)):
        (z,) = moving(Z)
        (g,) = torch.autograd.grad(f(z, noise).sum(), z, create_graph=True)
        (g**2).sum().backward()
        found.append((g.detach(), z.grad))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_what_is_reverse_mode_only_in_jax_raises_in_forward_mode():
    rows = jax_to_torch(dk.straight_through)
    with pytest.raises(TypeError, match="forward-mode autodiff"):
        torch.func.jvp(rows, (Z,), (Z,))


def counted():
    traces = []

    def cube(a, b, factor=1.0):
        traces.append(a.shape)
        return {"sum": jnp.sum(a**3 * b) * factor, "cube": (a**3,)}

    return jax_to_torch(cube), traces


def test_nothing_is_traced_twice():
    bridged, traces = counted()

    def step(factor):
        a, b = moving(Z, G)
        out = bridged(a, b, factor=factor)
        out["sum"].backward(retain_graph=True)
        (g,) = torch.autograd.grad(out["sum"], a, create_graph=True)
        g.sum().backward()

    step(1.0)
    first = len(traces)
    for factor in (2.0, 3.0):
        step(factor)
    assert len(traces) == first


def test_only_what_is_asked_for_is_differentiated():
    bridged, _ = counted()
    a, b = moving(Z, G)
    out = bridged(a, b)
    (alone,) = torch.autograd.grad(out["sum"], b, retain_graph=True)
    both = torch.autograd.grad(out["sum"], (a, b))
    torch.testing.assert_close(alone, Z**3)
    torch.testing.assert_close(both, (3 * Z**2 * G, Z**3))
    assert not bridged(Z, G)["sum"].requires_grad
    with torch.no_grad():
        assert not bridged(a, b)["sum"].requires_grad


def test_a_result_shares_no_memory_with_an_argument():
    big = torch.zeros(1000, 10, dtype=torch.float64)
    out = jax_to_torch(lambda a: a)(big)
    out.add_(1)
    assert not big.any()


def test_without_jit_results_share_no_memory_either():
    constant = jnp.zeros(3)
    with jax.disable_jit():
        ones = torch.ones(3)
        jax_to_torch(lambda a: a)(ones).mul_(5)
        jax_to_torch(lambda a: constant)(ones).add_(5)
    assert torch.equal(ones, torch.ones(3))
    assert not constant.any()


def test_it_works_under_checkpointing():
    (z,) = moving(Z)
    sine = jax_to_torch(jnp.sin)
    out = torch.utils.checkpoint.checkpoint(sine, z, use_reentrant=False)
    out.sum().backward()
    torch.testing.assert_close(z.grad, Z.cos())


@pytest.mark.parametrize(
    "tensor",
    [
        Z[:, ::2],
        Z.T,
        Z[1:],
        Z[0, 0],
        Z[:0],
        Z > 0,
        torch.arange(5),
        Z.bfloat16(),
        Z.half(),
        Z.float(),
        torch.nn.Parameter(Z),
    ],
)
def test_any_layout_and_dtype_keeps_its_value_and_dtype(tensor):
    out = jax_to_torch(lambda a: a + a)(tensor)
    assert out.dtype == tensor.dtype
    assert torch.equal(out, tensor + tensor)


def test_an_edit_in_place_between_the_passes_is_found():
    (x,) = moving(X)
    y = 1 * x
    value = loss(y, C)
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_an_edit_of_a_result_in_place_harms_no_gradient():
    (z,) = moving(Z)
    out = jax_to_torch(jnp.exp)(z)
    out.mul_(2)
    out.sum().backward()
    torch.testing.assert_close(z.grad, 2 * Z.exp())


def test_a_graph_is_released_as_torchs_own():
    (x,) = moving(X)
    value = loss(x, C)
    value.backward(retain_graph=True)
    value.backward()
    torch.testing.assert_close(x.grad, 2 * torch.func.grad(loss)(X, C))
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


def test_the_backward_pass_has_the_settings_of_the_forward_pass():
    def promoting(a):
        return (a * jnp.arange(1.0, 2.0, dtype=jnp.float64)[0] * 2).astype(a.dtype)

    (a,) = moving(Z.float())
    with pytest.raises(Exception, match="no available implicit dtype promotion"):
        jax_to_torch(promoting)(a)
    with jax.numpy_dtype_promotion("standard"):
        out = jax_to_torch(promoting)(a)
    failed = []

    def in_a_thread():
        try:
            (g,) = torch.autograd.grad(out.sum(), a, create_graph=True)
            failed.append(g)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    torch.testing.assert_close(failed[0].detach(), torch.full((6, 5), 2.0))


def test_threads_share_a_bridge():
    found = []

    def work():
        (c,) = moving(C)
        loss(X, c).backward()
        found.append(c.grad)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for gradient in found:
        torch.testing.assert_close(gradient, found[0], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_under_torch_compile_it_is_a_break_in_the_graph():
    def program(c):
        return loss(X, 2 * c).sin() + c.sum()

    eager, compiled = moving(C, C)
    program(eager).backward()
    torch.compile(program, backend="aot_eager")(compiled).backward()
    torch.testing.assert_close(compiled.grad, eager.grad)


def test_a_training_loop_in_torch_lowers_the_loss():
    (c,) = moving(C)
    optimizer = torch.optim.Adam([c], lr=0.05)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        value = loss(X, c)
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert losses[-1] < 0.9 * losses[0]


def twice(a, b=None):
    del b
    return a * 2


# Of one JAX would read memory that is not there, and the process would end.
FAKE = FakeTensorMode().from_tensor(X)
RAISES = [
    (twice, (X.numpy(),), {}, TypeError, r"args\[0\] must be a tensor .*numpy.ndarray"),
    (twice, (X,), {"b": [jnp.ones(2)]}, TypeError, r"kwargs\['b'\]\[0\] must be .*jax"),
    (twice, (X,), {"b": {3}}, TypeError, r"kwargs\['b'\] must be .*builtins.set"),
    (twice, (1.0,), {}, ValueError, "at least one tensor"),
    (twice, (X.to("meta"),), {}, ValueError, r"args\[0\] must be on .*device meta"),
    (twice, (X, X.to("meta")), {}, ValueError, r"args\[1\] must be on .*meta"),
    (twice, (X.to(torch.complex64),), {}, TypeError, "dense and real, .*complex64"),
    (twice, (X.to_sparse(),), {}, TypeError, "dense and real, .*sparse"),
    (twice, (FAKE,), {}, TypeError, "dense and real, got a fake tensor"),
    (lambda a: "s", (X,), {}, TypeError, r"fn must return arrays .*str as fn\(...\)"),
    (lambda a: {"k": object()}, (X,), {}, TypeError, r"object as fn\(...\)\['k'\]"),
    (lambda a: jax.random.key(0), (X,), {}, TypeError, "key<fry>"),
]


@pytest.mark.parametrize(("fn", "args", "kwargs", "error", "message"), RAISES)
def test_every_error_says_what_is_wrong(fn, args, kwargs, error, message):
    with pytest.raises(error, match=message):
        jax_to_torch(fn)(*args, **kwargs)


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match="fn must be a function, got 3"):
        jax_to_torch(3)


@jax_to_torch
def decorated(x):
    return jnp.sum(x**2)


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.loss = jax_to_torch(dk.kmeans_loss)
        self.decorated = decorated

    def forward(self, x):
        return self.loss(self.weight * x, C) + self.decorated(x)

    @jax_to_torch
    def method(self, x):
        return 2 * x


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), torch_saved]
)
def test_a_module_that_holds_a_bridge_can_be_copied(copied):
    layer = Layer()
    expected = layer(X)
    again = copied(layer)
    value = again(X)
    value.backward()
    assert value.detach() == expected.detach()
    assert again.weight.grad.isfinite().all()
    assert layer.weight.grad is None
    assert again.decorated is decorated


def test_a_bridge_around_what_has_no_name_is_copied_with_it():
    bridged = jax_to_torch(partial(dk.kmeans_loss, weights=jnp.full(13, 2.0)))
    again = pickle.loads(pickle.dumps(copy.deepcopy(bridged)))
    assert again(X, C) == bridged(X, C)


def test_a_bridge_is_a_method_as_a_function_is():
    assert torch.equal(Layer().method(X), 2 * X)
    assert SOFT.__name__ == "soft_kmeans_loss"


TRACED = []


def noisy(key, x, *, checkpointed):
    TRACED.append(key)

    def f(x):
        noise = jax.random.normal(jax.random.fold_in(key, 1), x.shape, x.dtype)
        return jnp.sum((x * noise) ** 2)

    return jax.checkpoint(f)(x) if checkpointed else f(x)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_random_key_is_an_argument(checkpointed):
    # Recomputed in the backward pass, the key is among the residuals.
    bridged = jax_to_torch(partial(noisy, checkpointed=checkpointed))
    bridged(jax.random.key(2), X)
    before = len(TRACED)
    bridged(jax.random.key(3), X)
    assert len(TRACED) == before
    for seed in (0, 1):
        key = jax.random.key(seed)
        (x,) = moving(X)
        value = bridged(key, x)
        (slope,) = torch.autograd.grad(value, x, create_graph=True)
        expected = jax.value_and_grad(noisy, argnums=1)
        expected = expected(key, jnp.asarray(X.numpy()), checkpointed=checkpointed)
        np.testing.assert_allclose(value.detach(), expected[0], rtol=1e-12)
        np.testing.assert_allclose(slope.detach(), expected[1], rtol=1e-12)
        assert torch.autograd.gradcheck(lambda x, k=key: bridged(k, x), (x,))
    key = jax.random.key(2)
    start = jax_to_torch(dk.kmeans_plus_plus)(key, X, 3)
    np.testing.assert_array_equal(start, dk.kmeans_plus_plus(key, X.numpy(), 3))


def test_a_random_key_under_vmap():
    bridged = jax_to_torch(partial(noisy, checkpointed=True))
    key = jax.random.key(0)
    found = torch.func.vmap(torch.func.grad(lambda x: bridged(key, x)))(X)
    slope = jax.grad(noisy, argnums=1)
    expected = [slope(key, x, checkpointed=True) for x in jnp.asarray(X.numpy())]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
