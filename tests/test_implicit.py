"""The implicit function theorem and the linear solver under it, apart from any fit."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from diffkm_jax.fitting._conjugate_residuals import conjugate_residuals
from diffkm_jax.fitting._implicit import System, solution, trusted

N = 8
BASIS, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(N, N)))
TOL = 1e-12


def matrix(eigenvalues):
    return jnp.asarray((BASIS * np.asarray(eigenvalues)) @ BASIS.T)


def solve(a, b, tol=TOL, max_iterations=100):
    return conjugate_residuals(lambda v: a @ v, b, tol, max_iterations)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_a_positive_system_is_solved_at_any_size(scale):
    a, b = matrix(np.arange(1.0, N + 1)), jnp.cos(jnp.arange(float(N)))
    x, r, null = solve(a, scale * b)
    expected = scale * jnp.linalg.solve(a, b)
    np.testing.assert_allclose(x, expected, rtol=1e-9)
    assert jnp.abs(r).max() <= 1e-10 * scale
    assert not null


def test_as_many_iterations_suffice_as_there_are_eigenvalues():
    a, b = matrix([1.0, 1, 1, 4, 4, 4, 9, 9]), jnp.ones(N)
    _, r, _ = solve(a, b, max_iterations=3)
    assert jnp.linalg.norm(r) <= 1e-12 * jnp.linalg.norm(b)
    _, r, _ = solve(a, b, max_iterations=2)
    assert jnp.linalg.norm(r) > 1e-6


def test_what_a_singular_system_cannot_reach_is_left_and_said_to_be_in_its_null_space():
    a = matrix([0.0, 0, 1, 2, 3, 4, 5, 6])
    b = jnp.asarray(BASIS @ np.array([1.0, 2, 1, 1, 1, 1, 1, 1]))
    x, r, null = solve(a, b, tol=1e-8)
    assert null
    np.testing.assert_allclose(r, BASIS[:, :2] @ np.array([1.0, 2.0]), atol=1e-7)
    np.testing.assert_allclose(a @ x, b - r, atol=1e-7)


def test_a_negative_curvature_ends_it_unsolved():
    a, b = matrix([-1.0, 1, 1, 1, 1, 1, 1, 1]), jnp.asarray(BASIS[:, 0])
    x, r, null = solve(a, b)
    assert jnp.isfinite(x).all()
    np.testing.assert_allclose(jnp.linalg.norm(r), 1.0, rtol=1e-12)
    assert not null


@pytest.mark.parametrize("bad", [0.0, jnp.nan, jnp.inf])
def test_the_answer_is_finite_whatever_the_right_hand_side(bad):
    a = matrix(np.ones(N))
    x, r, _ = solve(a, jnp.full(N, bad))
    np.testing.assert_array_equal(x, jnp.zeros(N))
    assert jnp.isfinite(r).all()


# x³ + x = θ, whose solution rises with slope 1 / (3x² + 1).
def cubic(x, theta):
    return theta - x**3 - x, None


def divided(x, theta, about, b):
    del theta, about
    product = partial(jnp.multiply, 3 * x**2 + 1)
    return lax.custom_linear_solve(
        product, b, lambda mv, b: b / mv(jnp.ones_like(b)), symmetric=True
    )


def root(theta):
    def newton(_, x):
        return x + cubic(x, theta)[0] / (3 * x**2 + 1)

    x = lax.stop_gradient(lax.fori_loop(0, 60, newton, jnp.zeros_like(theta)))
    return solution(System(cubic, divided, trusted), x, theta)[0]


def test_the_theorem_gives_every_order_in_both_modes():
    check_grads(root, (jnp.array([0.5, 2.0]),), order=3, modes=["fwd", "rev"])
    theta = jnp.array([2.0])  # The root is 1.
    assert jax.jacfwd(root)(theta) == 0.25
    assert jax.jacrev(root)(theta) == 0.25
    # x″ = −6x x′² / (3x² + 1)
    np.testing.assert_allclose(jax.jacfwd(jax.jacrev(root))(theta), -6 / 64, rtol=1e-14)


def test_whether_it_can_be_solved_is_tried_only_where_it_is_differentiated():
    def never(x, theta, about):
        del theta, about
        return (x == x).all() & False

    system = System(cubic, divided, never)

    def with_status(theta):
        return solution(system, jnp.ones(1), theta)

    theta = jnp.array([2.0])
    assert with_status(theta)[1]
    _, solved = jax.jvp(with_status, (theta,), (theta,))[0]
    assert not solved
    # The problems of a batch are each tried.
    _, solved = jax.vmap(lambda t: jax.jvp(with_status, (t,), (t,))[0])(theta[None])
    assert solved.tolist() == [False]
