"""torch_to_jax: torch functions in JAX, their first derivatives, what is refused."""

import copy
import pickle
import threading
from collections import namedtuple
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import lax

import diffkm_jax as dk
import diffkm_torch as dt
from diffkm_torch.bridge import _callbacks, jax_to_torch, torch_to_jax

RNG = np.random.default_rng(0)
X, C = jnp.asarray(RNG.normal(size=(13, 3))), jnp.asarray(RNG.normal(size=(4, 3)))
A, B = jnp.asarray(RNG.normal(size=(5, 3))), jnp.asarray(RNG.normal(size=3))
SOFT = partial(torch_to_jax(dt.soft_kmeans_loss), temperature=0.5)
SOFT_JAX = partial(dk.soft_kmeans_loss, temperature=0.5)


def wave(a, b):
    return (a.sin() * b).sum()


def wave_jax(a, b):
    return (jnp.sin(a) * jnp.broadcast_to(b, a.shape)).sum()


def data_dependent(a, b):
    """It is wave, of which neither a fake tensor nor torch.func knows the branch."""
    return wave(a, b) if a.sum() > -1e12 else a.sum()


WAVE = torch_to_jax(wave)
BRANCHED = torch_to_jax(data_dependent)


def close(found, expected, rtol=1e-12):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=1e-12)


def scanned(f):
    def step(a, _):
        value = f(a, B)
        return a * value, value

    return lambda a, b: lax.scan(step, a * b.sum(), None, length=3)[0].sum()


BOTH = 0, 1
TRANSFORMS = {
    "value": lambda f: f,
    "jit": jax.jit,
    "grad": jax.grad,
    "grad of the second": lambda f: jax.grad(f, 1),
    "value_and_grad": lambda f: jax.value_and_grad(f, BOTH),
    "jit of grad": lambda f: jax.jit(jax.grad(f, BOTH)),
    "grad of jit": lambda f: jax.grad(jax.jit(f), BOTH),
    "vmap": lambda f: jax.vmap(f, (0, None)),
    "vmap along the last axis": lambda f: jax.vmap(f, (1, None)),
    "vmap of grad": lambda f: jax.vmap(jax.grad(f, BOTH), (0, None)),
    "grad of vmap": lambda f: jax.grad(
        lambda a, b: jax.vmap(f, (0, None))(a, b).sum(), BOTH
    ),
    "vmap of vmap": lambda f: (
        lambda a, b: jax.vmap(jax.vmap(f, (0, None)), (None, 0))(
            a, jnp.stack([b, a[0]])
        )
    ),
    "vmap of vmap of grad": lambda f: (
        lambda a, b: jax.vmap(jax.vmap(jax.grad(f, BOTH), (0, None)), (None, 0))(
            a, jnp.stack([b, a[0]])
        )
    ),
    "vmap of one": lambda f: lambda a, b: jax.vmap(jax.grad(f), (0, None))(a[:1], b),
    "vmap of none": lambda f: lambda a, b: jax.vmap(jax.grad(f), (0, None))(a[:0], b),
    "jacrev": lambda f: jax.jacrev(lambda a, b: jax.vmap(f, (0, None))(a, b)),
    "scan": scanned,
    "grad of scan": lambda f: jax.grad(scanned(f), BOTH),
    "grad of checkpoint": lambda f: jax.grad(jax.checkpoint(f), BOTH),
    "while": lambda f: lambda a, b: lax.fori_loop(0, 3, lambda i, x: x * f(x, b), a),
}


@pytest.mark.parametrize("bridged", [WAVE, BRANCHED], ids=["mapped", "looped"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_give_what_they_give_of_jax(name, bridged):
    transform = TRANSFORMS[name]
    b = B[:1] if "last" in name else B
    close(transform(bridged)(A, b), transform(wave_jax)(A, b))


@pytest.mark.parametrize("transform", [lambda f: f, partial(jax.grad, argnums=BOTH)])
def test_a_loss_of_this_library_has_its_twins_value_and_gradient(transform):
    close(jax.jit(transform(SOFT))(X, C), transform(SOFT_JAX)(X, C), rtol=1e-10)


def test_without_jit_it_works_too():
    with jax.disable_jit():
        close(jax.grad(WAVE)(A, B), jax.grad(wave_jax)(A, B))


def test_a_batch_is_one_call_of_torch_where_torch_can_map():
    shapes = []

    def seen(a):
        shapes.append(tuple(a.shape))
        return a.sin().sum()

    def seen_looped(a):
        return seen(a) if a.sum() > -1e12 else a.sum()

    for fn, calls in ((seen, 1), (seen_looped, 5)):
        mapped = jax.jit(jax.vmap(torch_to_jax(fn)))
        mapped(A)
        shapes.clear()
        mapped(A)
        assert shapes == [(3,)] * calls


def test_only_what_is_asked_for_is_differentiated():
    asked = []

    def seen(a, b):
        asked.append((a.requires_grad, b.requires_grad))
        return {"sum": wave(a, b), "other": b.exp()}

    bridged = torch_to_jax(seen)
    jax.grad(lambda b: bridged(A, b)["sum"])(B)
    assert asked[-1] == (False, True)
    calls = len(asked)
    jax.grad(lambda a: bridged(A, B)["sum"] * a)(1.0)
    assert asked[calls:] == [(False, False)]


def test_a_value_costs_one_call_and_its_gradient_two():
    calls = []

    def counted(a):
        calls.append(1)
        return a.sin().sum()

    bridged = torch_to_jax(counted)
    value, both = jax.jit(bridged), jax.jit(jax.value_and_grad(bridged))
    jax.block_until_ready((value(A), both(A)))
    calls.clear()
    value(A + 1).block_until_ready()
    assert len(calls) == 1
    jax.block_until_ready(both(A + 1))
    assert len(calls) == 3


def test_nothing_is_traced_twice():
    trials = []

    def counted(a, factor):
        trials.extend([1] * isinstance(a, torch._subclasses.FakeTensor))
        return (a * factor).sum()

    bridged = torch_to_jax(counted)
    for _ in range(3):
        jax.grad(bridged)(A, 2.0)
        bridged(A, 2.0)
    assert len(trials) == 1
    bridged(A, 3.0)
    bridged(A[:2], 2.0)
    assert len(trials) == 3


Pair = namedtuple("Pair", "first second")


def test_trees_go_in_and_come_out():
    def swapped(pair, extra=None, *, options):
        assert extra is None
        first, second = pair
        return Pair({"a": second * options["scale"]}, [first.sum(), None, 2.0])

    bridged = torch_to_jax(swapped)
    out = jax.jit(lambda p: bridged(p, options={"scale": 3}))(Pair(A, B))
    close(out.first["a"], 3 * B)
    close(out.second[0], A.sum())
    assert out.second[1] is None
    assert out.second[2] == 2
    slope = jax.grad(lambda p: bridged(p, options={"scale": 3}).first["a"].sum())
    close(slope(Pair(A, B)), Pair(0 * A, jnp.full(3, 3.0)))


def test_a_record_of_torch_is_a_tuple():
    values, indices = torch_to_jax(partial(torch.max, dim=1))(A)
    close((values, indices), (A.max(1), A.argmax(1)))


STATIC = [2, True, -0.0, 0.0, 0.5, float("nan"), "mean", torch.float32, None, 1 + 2j]


@pytest.mark.parametrize("value", STATIC, ids=repr)
def test_what_is_no_array_comes_as_it_is(value):
    seen = []

    def fn(a, option):
        seen.append(option)
        return a * 1

    bridged = torch_to_jax(fn)
    for other in STATIC:
        bridged(B, other)
    seen.clear()
    bridged(B, option=value)
    assert {repr(s) for s in seen} == {repr(value)}
    assert {type(s) for s in seen} == {type(value)}


DTYPES = ["float16", "bfloat16", "float32", "float64", "bool"]
DTYPES += ["int8", "int16", "int32", "int64", "uint8"]


@pytest.mark.parametrize("host", ["buffers", "numpy"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_any_dtype_and_shape_keeps_its_value_and_dtype(dtype, shape, host, monkeypatch):
    if host == "numpy":
        # The way of every other platform, which the CPU can go, too.
        monkeypatch.setattr(
            _callbacks.lax, "platform_dependent", lambda *a, default, **_: default(*a)
        )
    array = jnp.asarray(RNG.integers(0, 2, shape)).astype(dtype)
    bridged = torch_to_jax(lambda a: (a.clone(), a.mT if a.ndim else a))
    close(jax.jit(bridged)(array), (array, array.mT if array.ndim else array))
    close(bridged(np.asarray(array))[0], array)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_gradient_has_the_dtype_of_its_input(dtype):
    a = A.astype(dtype)
    slope = jax.grad(lambda a: WAVE(a, B.astype(dtype)))(a)
    assert slope.dtype == a.dtype
    np.testing.assert_allclose(
        np.float64(slope), jax.grad(wave_jax)(A, B), rtol=0.02, atol=0.02
    )


def test_integers_have_no_gradient_and_harm_none():
    def taken(values, rows):
        return values[rows].sum(), rows + 1

    def cost(f, values, rows):
        total, more = f(values, rows)
        return total * more[0].astype(total.dtype)

    rows = jnp.array([0, 2, 2])
    ours, theirs = (partial(cost, f) for f in (torch_to_jax(taken), taken))
    close(jax.grad(ours)(A, rows), jax.grad(theirs)(A, rows))
    slopes = jax.grad(ours, BOTH, allow_int=True)(A, rows)
    assert slopes[1].dtype == jax.dtypes.float0
    close(*(jax.vmap(jax.grad(f), (None, 0))(A, rows[:, None]) for f in (ours, theirs)))


def test_what_is_detached_or_unused_has_gradient_zero():
    def halves(a, b):
        return (a * a.detach()).sum(), a.detach().sum()

    slopes = jax.grad(lambda a, b: sum(torch_to_jax(halves)(a, b)), BOTH)(A, B)
    close(slopes, (A, 0 * B))
    close(jax.grad(torch_to_jax(lambda a: a.detach().sum()))(A), 0 * A)


def test_a_function_may_differentiate_inside():
    def force(a):
        a = a.detach().requires_grad_()
        return torch.autograd.grad(a.sin().sum(), a)[0]

    def slope(a):
        return torch.func.grad(lambda a: a.sin().sum())(a)

    close(torch_to_jax(force)(A), jnp.cos(A))
    close(jax.grad(lambda a: torch_to_jax(slope)(a).sum())(A), -jnp.sin(A))


@pytest.mark.parametrize(
    "setting",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
    ],
)
def test_settings_of_the_thread_of_torch_change_nothing(setting):
    # A callback may run in this thread, or in another.
    with setting():
        product = torch_to_jax(lambda a: (a @ a.mT).sum())
        slope = jax.grad(product)(jnp.ones((2, 3), jnp.float32))
        inner = torch_to_jax(lambda a: torch.func.grad(torch.sum)(a))(B)
    close(slope, jnp.full((2, 3), 4.0, jnp.float32))
    close(inner, jnp.ones_like(B))


class Cube(torch.autograd.Function):
    """A function without a rule for torch.func."""

    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return a**3

    @staticmethod
    def backward(ctx, cotangent):
        return 7 * ctx.saved_tensors[0] ** 2 * cotangent


def test_a_declared_gradient_of_torch_is_kept():
    bridged = torch_to_jax(lambda a: Cube.apply(a).sum())
    close(jax.grad(bridged)(A), 7 * A**2)
    close(jax.vmap(jax.grad(bridged))(A), 7 * A**2)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.grad, jax.vmap])
def test_an_edit_of_an_argument_in_place_harms_no_array(transform):
    def edited(a, b):
        a.mul_(2).add_(b)
        b.zero_()
        return a.sum() if a.ndim else a.sin()

    def edited_jax(a, b):
        return (2 * a + b).sum() if a.ndim else jnp.sin(2 * a + b)

    a, b = jnp.ones(100), jnp.full(100, 3.0)
    close(transform(torch_to_jax(edited))(a, b), transform(edited_jax)(a, b))
    close((a, b), (jnp.ones(100), jnp.full(100, 3.0)))
    close(
        jax.vmap(torch_to_jax(edited), (0, None))(A, B),
        jax.vmap(edited_jax, (0, None))(A, B),
    )


def test_a_result_shares_no_memory_with_torch():
    state = torch.zeros(1000, dtype=torch.float64)
    bridged = torch_to_jax(lambda a: (state, a))
    a = jnp.ones(1000)
    kept, same = bridged(a)
    state.add_(5)
    assert not kept.any()
    np.asarray(same)
    assert same.unsafe_buffer_pointer() != a.unsafe_buffer_pointer()


def mesh_of(kind):
    return jax.make_mesh((4,), ("data",), axis_types=(kind,))


@pytest.mark.parametrize("kind", list(jax.sharding.AxisType)[:2])
def test_sharded_arrays_are_taken(kind):
    sharded = jax.device_put(
        jnp.arange(8.0), jax.NamedSharding(mesh_of(kind), jax.P("data"))
    )
    close(
        jax.jit(jax.grad(WAVE, BOTH))(sharded, 2 * sharded),
        jax.grad(wave_jax, BOTH)(jnp.arange(8.0), 2 * jnp.arange(8.0)),
    )


def test_inside_shard_map_every_device_calls():
    def total(f, a, b):
        def local(a, b):
            return lax.psum(f(a, b), "data")

        mesh = mesh_of(jax.sharding.AxisType.Auto)
        specs = jax.P("data"), jax.P()
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=jax.P())(a, b)

    a, b = jnp.asarray(RNG.normal(size=(8, 3))), B
    slopes = jax.jit(jax.grad(partial(total, WAVE), BOTH))(a, b)
    close(slopes, jax.grad(wave_jax, BOTH)(a, b))


def finishes(work, threads=1):
    """Runs in threads that do not hold up the test, and says what they found."""
    found = []
    running = [
        threading.Thread(target=lambda: found.append(work()), daemon=True)
        for _ in range(threads)
    ]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(timeout=60)
    assert len(found) == threads, "a callback never returns"
    return found


SINE = jax_to_torch(lambda a: jnp.sin(a) * a)


@pytest.mark.parametrize("inner", [lambda a: a.sin() * a, SINE], ids=["torch", "jax"])
@pytest.mark.parametrize("threads", [1, 4])
def test_large_arrays_in_many_threads_come_to_an_end(inner, threads):
    # Of jax.pure_callback they do not: it waits for a copy that no thread is left for.
    bridged = torch_to_jax(inner)

    @jax.jit
    def slope(a):
        return jax.grad(lambda a: bridged(bridged(a) + a).sum())(a)

    a = jnp.linspace(0.0, 1.0, 1_000_000)
    expected = jax.grad(
        lambda a: (lambda b: (jnp.sin(b) * b).sum())(jnp.sin(a) * a + a)
    )
    for found in finishes(lambda: slope(a), threads):
        close(found, expected(a))


def test_large_arrays_on_many_devices_come_to_an_end():
    mesh, spec = mesh_of(jax.sharding.AxisType.Auto), jax.P("data")
    bridged = torch_to_jax(lambda a: a.sin())
    mapped = jax.jit(jax.shard_map(bridged, mesh=mesh, in_specs=spec, out_specs=spec))
    a = jnp.linspace(0.0, 1.0, 4_000_000)
    close(finishes(lambda: mapped(a))[0], jnp.sin(a))


def test_there_and_back_again_is_the_function():
    back = torch_to_jax(jax_to_torch(wave_jax))
    close(
        jax.jit(jax.value_and_grad(back, BOTH))(A, B),
        jax.value_and_grad(wave_jax, BOTH)(A, B),
    )
    forth = jax_to_torch(torch_to_jax(wave))
    a, b = (torch.tensor(np.asarray(x), requires_grad=True) for x in (A, B))
    found = torch.autograd.grad(forth(a, b), (a, b))
    torch.testing.assert_close(found, torch.autograd.grad(wave(a, b), (a, b)))


def test_a_training_loop_in_jax_lowers_a_loss_of_torch():
    @jax.jit
    def step(c, _):
        value, slope = jax.value_and_grad(SOFT, 1)(X, c)
        return c - 0.02 * slope, value

    _, losses = lax.scan(step, C, None, length=50)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: jax.grad(lambda a: jax.grad(f)(a, B).sum()),
        lambda f: jax.grad(lambda a: jax.jit(jax.grad(f))(a, B).sum()),
        lambda f: jax.jacrev(jax.grad(lambda a: f(a, B))),
        lambda f: jax.vmap(jax.grad(lambda a: (jax.grad(f)(a, B) ** 2).sum())),
    ],
)
def test_a_second_derivative_raises_and_says_what_to_do(transform):
    with pytest.raises(TypeError, match=r"first order only: .* by torch.func.grad"):
        transform(WAVE)(A)


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: lambda a: jax.jvp(lambda a: f(a, B), (a,), (a,)),
        lambda f: jax.jacfwd(lambda a: f(a, B)),
        lambda f: jax.hessian(lambda a: f(a, B)),
        lambda f: jax.jit(lambda a: jax.linearize(lambda a: f(a, B), a)[1](a)),
    ],
)
def test_forward_mode_raises(transform):
    with pytest.raises(TypeError, match="forward-mode autodiff"):
        transform(WAVE)(A)


def test_it_cannot_be_exported():
    with pytest.raises(NotImplementedError, match="host_callbacks"):
        jax.export.export(jax.jit(WAVE))(A, B)


STATE = torch.zeros(3, dtype=torch.float64)
NORM = torch.nn.BatchNorm1d(3).double()


@pytest.mark.parametrize(
    ("fn", "args", "error", "message"),
    [
        (
            wave,
            (torch.ones(3), B),
            TypeError,
            r"args\[0\] must be an array .*from_dlpack",
        ),
        (
            wave,
            (A, {"k": {3}}),
            TypeError,
            r"args\[1\]\['k'\] must be an array or hashable",
        ),
        (
            wave,
            (A.astype(complex), B),
            TypeError,
            r"args\[0\] must be .*real numbers.*complex128",
        ),
        (wave, (A, jax.random.key(0)), TypeError, r"args\[1\] must be .*key<fry>"),
        (
            lambda a: "s",
            (A,),
            TypeError,
            r"fn must return dense .*got str as fn\(...\)",
        ),
        (
            lambda a: {"k": a.to_sparse()},
            (A,),
            TypeError,
            r"sparse.* as fn\(...\)\['k'\]",
        ),
        (lambda a: a + 0j, (A,), TypeError, "complex128"),
        (lambda a: a.to("meta"), (A,), TypeError, "on the CPU, got .*meta"),
        (
            lambda a: a.to(torch.float8_e5m2),
            (A,),
            TypeError,
            "got a tensor of .*float8",
        ),
        (lambda a: a + torch.rand(3), (B,), ValueError, r"draws by aten.rand.*hand in"),
        (lambda a: STATE.add_(a), (B,), ValueError, r"edits buffers, by aten.add_"),
        (lambda a: torch.add(a, a, out=STATE), (B,), ValueError, r"edits buffers"),
        (lambda a: NORM(a), (A,), ValueError, r"edits buffers.*\.eval\(\)"),
        (lambda a: a @ a, (A,), RuntimeError, "size mismatch|cannot be multiplied"),
        (lambda a: 1 / 0, (A,), ZeroDivisionError, "division by zero"),
    ],
)
def test_every_error_says_what_is_wrong(fn, args, error, message):
    with pytest.raises(error, match=message):
        torch_to_jax(fn)(*args)


# The latter where JAX need not wait for a program.
RAISED = jax.errors.JaxRuntimeError, ValueError


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.vmap, jax.grad])
def test_what_torch_raises_in_a_program_reaches_the_user(transform):
    def strict(a):
        if not (a > 0).all():
            raise ArithmeticError("only what is positive")
        return a.sum()

    with pytest.raises(RAISED, match="only what is positive"):
        jax.block_until_ready(transform(torch_to_jax(strict))(-jnp.ones((2,))))


def test_shapes_that_depend_on_values_are_refused():
    bridged = torch_to_jax(lambda a: a[a > 0])
    close(bridged(jnp.ones(3)), jnp.ones(3))
    with pytest.raises(RAISED, match=r"float64\[1\], and float64\[3\] in the trial"):
        jax.block_until_ready(bridged(jnp.array([1.0, -1.0, -1.0])))


def test_a_trial_is_of_ones_and_zeros_where_fake_tensors_do_not_do():
    seen = []

    def fn(a, rows):
        seen.append((a.sum().item(), rows.sum().item()))
        return a[rows]

    torch_to_jax(fn)(A, jnp.array([1, 2]))
    assert seen == [(15.0, 0), (float(A.sum()), 3)]


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match=r"fn must be a function or a module .*got 3"):
        torch_to_jax(3)


@torch_to_jax
def decorated(a):
    """Squares."""
    return a**2


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f))]
)
def test_it_is_named_and_copied_as_a_function_is(copied):
    assert decorated.__name__ == "decorated"
    assert decorated.__doc__ == "Squares."
    assert copied(decorated) is decorated
