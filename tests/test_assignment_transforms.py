"""What every assignment map must survive: modes, vmap, dtypes, schedules, −inf."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from maps import COTANGENT, LOGITS, MAPS, RULED, gradient, mapped, noise_for, scalar

import diffkm_jax as dk


@pytest.mark.parametrize("name", RULED)
def test_declared_gradients_are_reverse_mode_only(name):
    f = lambda z: jnp.sum(mapped(name)(z) * COTANGENT)  # noqa: E731
    for transform in (jax.jacfwd, jax.hessian):
        with pytest.raises(TypeError, match="forward-mode"):
            transform(f)(LOGITS)


@pytest.mark.parametrize(
    "name", ["softmax", "sparsemax", "entmax15", "entmax", "sinkhorn", "gumbel_softmax"]
)
def test_exact_gradients_are_those_of_finite_differences_at_every_order(name):
    more = {"num_iters": 3} if name == "sinkhorn" else {}
    f = jax.jit(lambda z, t: mapped(name, t, **more)(z))
    jax.test_util.check_grads(f, (LOGITS, 0.8), 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in MAPS if n != "sinkhorn"])
def test_vmap_equals_the_loop(name):
    noise = noise_for(name, LOGITS.shape)
    f = getattr(dk, name)
    axis = 1 if noise and noise["noise"].ndim > 2 else 0

    @jax.jit
    def one(z, g):
        return jax.value_and_grad(lambda z: f(z, *g) @ COTANGENT[0])(z)

    args = [jnp.asarray(v) for v in noise.values()]
    mapped_values = jax.jit(jax.vmap(one, (0, axis)))(LOGITS, args)
    looped = [one(LOGITS[i], [jnp.take(a, i, axis) for a in args]) for i in range(6)]
    for i, expected in enumerate(looped):
        for found, want in zip(mapped_values, expected, strict=True):
            np.testing.assert_allclose(found[i], want, rtol=1e-12, atol=1e-14)


def test_batches_of_sinkhorn_are_problems_of_their_own():
    stacked = jnp.stack([LOGITS, 2 * LOGITS, -LOGITS])
    rows = dk.sinkhorn(stacked)
    for problem, found in zip(stacked, rows, strict=True):
        np.testing.assert_allclose(found, dk.sinkhorn(problem), rtol=1e-12)


@pytest.mark.parametrize("name", [n for n in MAPS if n != "hard"])
def test_a_schedule_drives_every_scalar_without_a_trace_per_step(name):
    traces = []
    # The schedule of Jang, Gu & Poole 2017: max(0.5, exp(−r·t)), in one line of optax.
    schedule = optax.exponential_decay(1.0, 1, np.exp(-0.05), end_value=0.5)

    @jax.jit
    def f(z, step):
        traces.append(1)
        return mapped(name, schedule(step))(z)

    rows = [f(LOGITS, step) for step in (0, 5, 100)]
    assert len(traces) == 1
    np.testing.assert_allclose(rows[-1], mapped(name, 0.5)(LOGITS), rtol=1e-6)


def test_the_schedule_of_the_gumbel_softmax_paper():
    schedule = optax.exponential_decay(1.0, 1, np.exp(-1e-3), end_value=0.5)
    for step in (0, 300, 5000):
        np.testing.assert_allclose(
            schedule(step), max(0.5, np.exp(-1e-3 * step)), rtol=1e-5
        )


@pytest.mark.parametrize("name", [n for n in MAPS if n != "hard"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_narrow_logits_have_a_backward_pass_in_float32(name, dtype):
    narrow, ct = LOGITS.astype(dtype), COTANGENT.astype(dtype)
    noise = {
        k: jnp.asarray(v, "float32") for k, v in noise_for(name, LOGITS.shape).items()
    }

    def grads(z, ct, noise):
        def f(z, noise, value):
            rows = getattr(dk, name)(z, **noise, **{scalar(name): value})
            return jnp.sum(rows.astype(ct.dtype) * ct)

        return jax.grad(f, (0, 1, 2))(z, noise, jnp.asarray(0.7, "float32"))

    found = grads(narrow, ct, noise)
    assert found[0].dtype == dtype
    assert found[2].dtype == "float32"
    assert all(leaf.dtype == "float32" for leaf in found[1].values())
    wide = grads(narrow.astype("float32"), ct.astype("float32"), noise)
    rounding = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        np.asarray(found[0], np.float32), wide[0], rtol=2 * rounding, atol=2 * rounding
    )


@pytest.mark.parametrize("name", MAPS)
def test_minus_infinity_is_never_chosen_and_harms_no_gradient(name):
    logits = LOGITS.at[:, 2].set(-jnp.inf)
    f = mapped(name, 0.7 if scalar(name) else None)
    assert (mapped(name)(logits)[:, 2] == 0).all()
    in_logits = jax.jit(lambda z: gradient(f, z))(logits)
    assert jnp.isfinite(in_logits).all()
    assert (in_logits[:, 2] == 0).all()
    penalty = jax.grad(lambda z: jnp.sum(gradient(lambda z: f(z) ** 2, z) ** 2))
    assert jnp.isfinite(jax.jit(penalty)(logits)).all()


@pytest.mark.parametrize("name", [n for n in MAPS if n not in ("hard", "blackbox")])
def test_minus_infinity_harms_no_gradient_in_the_scalar(name):
    logits = LOGITS.at[:, 2].set(-jnp.inf)
    found = jax.grad(lambda t: jnp.sum(mapped(name, t)(logits) * COTANGENT))(0.7)
    assert jnp.isfinite(found)


@pytest.mark.parametrize("name", MAPS)
def test_a_row_of_minus_infinity_alone_harms_no_other(name):
    logits = LOGITS.at[1].set(-jnp.inf)
    rest = jnp.array([0, 2, 3, 4, 5])
    f = mapped(name)
    assert jnp.isfinite(f(logits)[rest]).all()
    found = jax.grad(lambda z: jnp.sum((f(z) * COTANGENT)[rest]))(logits)
    assert jnp.isfinite(found).all()
    everything = gradient(f, logits)
    assert jnp.isfinite(everything).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["sampled_straight_through", "reinmax", "gumbel_rao"])
def test_half_precision_does_not_pile_up_ties_over_many_clusters(name, dtype):
    logits = jnp.zeros((2000, 1024), dtype)
    noise = jax.random.gumbel(jax.random.key(0), (2, 2000, 1024), jnp.float32)
    first = noise if name == "gumbel_rao" else noise[0]
    index = getattr(dk, name)(logits, first).argmax(-1)
    np.testing.assert_array_equal(index, noise[0].argmax(-1))
    # Uniform over 1024: the mean is 511.5, its standard error 6.6.
    assert abs(float(index.mean()) - 511.5) < 30
    found = jax.grad(
        lambda z: jnp.sum(getattr(dk, name)(z, first)[:, :512].astype("float32"))
    )(logits)
    assert jnp.isfinite(found).all()


def test_softmax_tends_to_hard_as_scalar_falls():
    for name in ("softmax", "sparsemax", "entmax15", "entmax"):
        rows = getattr(dk, name)(LOGITS, tau=1e-3)
        np.testing.assert_allclose(rows, dk.hard(LOGITS), atol=1e-12)
        assert jnp.isfinite(getattr(dk, name)(LOGITS, tau=1e3)).all()
