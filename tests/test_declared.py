"""A value with the gradient of a rule: in every transform, at every order and dtype."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from diffkm_jax import estimators as es
from diffkm_jax.assignments._declared import declared, gradient_of

X = jnp.asarray(np.random.default_rng(0).normal(size=5))
Y = jnp.asarray(np.random.default_rng(1).normal(size=5))


def rounded(x, y):
    del y
    return jnp.round(x)


def product(x, y):
    return x * y


def by_hand(cotangent, x, y):
    return cotangent * y, cotangent * x


RULES = {"surrogate": gradient_of(product), "rule": by_hand}
EACH = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
TRANSFORMS = {
    "eager": lambda f: f,
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "vmap": lambda f: jax.vmap(f),
}


@EACH
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_the_value_is_one_functions_and_the_gradient_another_ones(rule, transform):
    f = transform(lambda x, y: declared(rounded, rule, x, y))
    value, pullback = jax.vjp(f, X, Y)
    np.testing.assert_array_equal(value, jnp.round(X))
    g = jnp.arange(1.0, 6.0)
    for found, expected in zip(pullback(g), (g * Y, g * X), strict=True):
        np.testing.assert_array_equal(found, expected)


@EACH
def test_forward_mode_raises(rule):
    f = lambda x: declared(rounded, rule, x, Y)  # noqa: E731
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(f, (X,), (X,))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.hessian(lambda x: jnp.sum(f(x)))(X)


@EACH
def test_a_second_derivative_meets_the_rule_again(rule):
    def penalty(x, y):
        slope = jax.grad(lambda x: jnp.sum(declared(rounded, rule, x, y) ** 2))(x)
        return jnp.sum(slope**2)

    x, y = (torch.tensor(np.asarray(a), requires_grad=True) for a in (X, Y))
    # The same by detach: the value of the rounding, the gradient of the product.
    value = x.detach().round() + (x * y - (x * y).detach())
    (slope,) = torch.autograd.grad((value**2).sum(), x, create_graph=True)
    expected = torch.autograd.grad((slope**2).sum(), (x, y))
    # The slope is 2 v y, v the value, whose derivatives are those of the rule again.
    by_formula = 8 * jnp.round(X) * Y**3
    np.testing.assert_allclose(expected[0], by_formula, rtol=1e-14)
    found = jax.grad(penalty, (0, 1))(X, Y)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-14)


def test_nothing_and_integers_are_no_obstacle():
    def value(x, nothing, index):
        assert nothing is None
        return jnp.round(x[index])

    def rule(cotangent, x, nothing, index):
        del nothing
        return jnp.zeros_like(x).at[index].set(cotangent), None, None

    def smooth(x, nothing, index):
        del nothing
        return 3 * x[index]

    index = jnp.array([4, 1])
    for r, factor in ((rule, 1), (gradient_of(smooth), 3)):
        f = lambda x, r=r: jnp.sum(declared(value, r, x, None, index))  # noqa: E731
        expected = factor * jnp.array([0.0, 1, 0, 0, 1])
        np.testing.assert_array_equal(jax.grad(f)(X), expected)


def test_what_the_rule_leaves_out_has_gradient_zero():
    f = lambda x, y: declared(product, lambda g, x, y: (g, None), x, y)  # noqa: E731
    in_x, in_y = jax.grad(lambda x, y: jnp.sum(f(x, y)), (0, 1))(X, Y)
    np.testing.assert_array_equal(in_x, jnp.ones(5))
    np.testing.assert_array_equal(in_y, jnp.zeros(5))


def test_a_narrow_value_takes_the_gradient_of_a_wide_surrogate():
    narrow, wide = X.astype(jnp.bfloat16), Y.astype(jnp.float32)

    def surrogate(x, y):
        return jnp.exp(x.astype(y.dtype)) * y

    def f(x, y):
        return declared(rounded, gradient_of(surrogate), x, y)

    value, pullback = jax.vjp(f, narrow, wide)
    in_x, in_y = pullback(jnp.ones_like(value))
    assert (value.dtype, in_x.dtype, in_y.dtype) == ("bfloat16", "bfloat16", "float32")
    # Rounded once, at the end.
    slope = jnp.exp(narrow.astype(jnp.float32))
    np.testing.assert_array_equal(in_x, (slope * wide).astype(jnp.bfloat16))
    np.testing.assert_array_equal(in_y, slope)


MADE = {
    "reinmax": es.reinmax,
    "gumbel_rao": es.gumbel_rao,
    "hard": lambda: es.gumbel_softmax(hard=True),
    "exact": lambda: es.exact(max_configurations=100),
    "scaled": lambda: es.implicit_mle(scaled=True),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_a_record_made_again_or_pickled_has_an_equal_rule(make):
    record = make()
    for again in (make(), pickle.loads(pickle.dumps(record))):
        assert again.rule == record.rule
        assert hash(again.rule) == hash(record.rule)
        assert jax.tree.structure(again) == jax.tree.structure(record)


def test_rules_of_other_options_differ():
    assert es.gumbel_softmax(hard=True).rule != es.gumbel_softmax().rule
    assert es.exact(max_configurations=9).rule != es.exact().rule
    assert es.implicit_mle(scaled=True).rule != es.implicit_mle().rule
    assert es.reinmax().rule != es.sampled_straight_through().rule
