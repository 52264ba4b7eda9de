"""A categorical variational autoencoder, its estimator an argument of the step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import diffkm_jax as dk
from diffkm_jax import estimators as es

VARIABLES, CLASSES, BATCH, STEPS = 30, 10, 64, 150
DIGITS = jnp.asarray(load_digits().data / 16, "float32")
OPTIMIZER = optax.adam(3e-3)
SCHEDULE = optax.exponential_decay(1.0, 1, float(np.exp(-5e-3)), end_value=0.5)
ESTIMATORS = {
    "gumbel_softmax": es.gumbel_softmax,
    "gumbel_softmax_hard": lambda *, tau: es.gumbel_softmax(tau=tau, hard=True),
    "reinmax": lambda *, tau: es.reinmax(tau=1 + 0 * tau),
    "rloo": lambda *, tau: es.rloo(num_samples=4),
}


def start():
    rng = np.random.default_rng(0)
    width = VARIABLES * CLASSES

    def dense(n, m):
        w = rng.normal(size=(n, m)) / np.sqrt(n)
        return jnp.asarray(w, "float32"), jnp.zeros(m, "float32")

    return {"encode": dense(64, width), "decode": dense(width, 64)}


def apply(layer, x):
    return x @ layer[0] + layer[1][None]


def negative_elbo(params, x, record, noise):
    logits = apply(params["encode"], x).reshape(-1, VARIABLES, CLASSES)

    def reconstruction(rows):
        out = apply(params["decode"], rows.reshape(len(x), -1))
        return jnp.sum(optax.sigmoid_binary_cross_entropy(out, x), axis=-1)

    log_p = jax.nn.log_softmax(logits)
    prior = jnp.sum(jnp.exp(log_p) * (log_p + float(np.log(CLASSES))), axis=(1, 2))
    return jnp.mean(record.expect(reconstruction, logits, noise) + prior)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_it_trains_in_one_compiled_step_while_tau_is_annealed(name):
    traces = []

    @jax.jit
    def step(params, opt_state, record, t):
        traces.append(1)
        key = jax.random.fold_in(jax.random.key(0), t)
        x = DIGITS[jax.random.randint(key, (BATCH,), 0, len(DIGITS))]
        noise = record.draw(key, (BATCH, VARIABLES, CLASSES), x.dtype)
        loss, grads = jax.value_and_grad(negative_elbo)(params, x, record, noise)
        with jax.numpy_dtype_promotion("standard"):  # optax promotes inside.
            updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    params = start()
    opt_state = OPTIMIZER.init(params)
    losses = []
    for t in range(STEPS):
        record = ESTIMATORS[name](tau=SCHEDULE(t))
        params, opt_state, loss = step(params, opt_state, record, t)
        losses.append(float(loss))
    assert len(traces) == 1
    assert np.isfinite(losses).all()
    assert np.mean(losses[-20:]) < 0.75 * np.mean(losses[:5])


def test_the_encoder_has_the_gradient_of_its_estimator():
    """The gradient that the encoder gets is unbiased if the estimator is."""
    params, x = start(), DIGITS[:2]
    small = jax.tree.map(lambda a: a, params)
    width = 2 * 3

    def loss(w, record, noise):
        logits = (x @ w).reshape(2, 2, 3)

        def cost(rows):
            out = rows.reshape(2, -1) @ small["decode"][0][:width]
            return jnp.sum(optax.sigmoid_binary_cross_entropy(out, x), axis=-1)

        return jnp.mean(record.expect(cost, logits, noise))

    w = small["encode"][0][:, :width]
    exact = jax.grad(loss)(w, es.exact(), jnp.zeros((0, 2, 2, 3), "float32"))
    record = es.rloo(num_samples=4)

    def sample(key):
        noise = record.draw(key, (2, 2, 3), "float32")
        return jax.grad(loss)(w, record, noise)

    samples = jax.jit(jax.vmap(sample))(jax.random.split(jax.random.key(1), 20_000))
    error = samples.std(0) / len(samples) ** 0.5
    assert (jnp.abs(samples.mean(0) - exact) < 5 * error + 1e-6).all()


def test_dk_estimators_is_the_module():
    assert dk.estimators is es
