"""One pass over the points, by the distance and the temperature that it is for.

No other file chooses by the distance. The labels are found without gradient, and
autograd does the rest through the gather at the nearest centroid, or the softmax.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffkm_torch._blocks import block_for, over_points
from diffkm_torch._checks import as_scalar
from diffkm_torch._expansion import Given, expand, given
from diffkm_torch._geometry import fill_rows, masked, prepare_centroids, prepare_rows
from diffkm_torch._problem import Problem
from diffkm_torch._products import product_of_rows, rows_of, sums_by_label
from diffkm_torch.assignments._softmax import below_largest
from diffkm_torch.distances import pairwise
from diffkm_torch.distances._form import Form
from diffkm_torch.distances._forms import form_of
from diffkm_torch.distances._pairwise import evaluate


def has_means(problem: Problem) -> bool:
    """Whether the distance has means, so that its pass is a matrix product."""
    return form_of(problem.distance) is not None


def sums(problem: Problem, centroids: Tensor) -> tuple[Tensor, ...]:
    """Loss [] and counts [k]; of a distance that has means, shifts [k, d] too."""
    if problem.temperature is not None:
        # Checked here too, because it may be what a schedule returned.
        dtype = problem.dtype(centroids)
        t = as_scalar("temperature", problem.temperature, dtype)
        problem = problem._replace(temperature=t)
    about = given(problem, centroids)
    if about is None:
        return _distance_sums(problem, centroids)
    if problem.temperature is None:
        return _hard_sums(problem, about)
    return _soft_sums(problem, about)


def labels_of(problem: Problem, centroids: Tensor) -> Tensor:
    """The nearest centroid of every point, [n], whatever its weight."""
    with torch.no_grad():
        about = given(problem, centroids)
        if about is None:
            c, _ = prepare_centroids(problem, centroids)
            blocks = problem.points.split(block_for(problem, 1, c.numel()))
            scores = (_scores_held(problem, x.to(c.dtype), c) for x in blocks)
            return torch.cat([score.max(1).indices for score in scores])
        form, c, *_ = about
        label = _labeling(problem, about)
        blocks = problem.points.split(block_for(problem, *c.shape))
        return torch.cat([label(form.embed(x.to(c.dtype))) for x in blocks])


def drawn_labels(problem: Problem, centroids: Tensor, noise: Tensor) -> Tensor:
    """The index of the largest of −distance / temperature + noise [n, k], [n]."""
    with torch.no_grad():
        score, size = _scoring(problem, centroids)
        acc, temperature = problem.dtype(centroids), problem.temperature
        assert temperature is not None
        t = as_scalar("temperature", temperature, acc).to(noise.device)

        def label(x: Tensor, noise: Tensor) -> Tensor:
            from_best = score(x.to(acc))
            # Less the best before it is scaled, which may overflow.
            from_best = from_best - from_best.amax(1, keepdim=True)
            perturbed = from_best / t + noise.to(acc)
            return masked(perturbed, problem.active).max(1).indices

        blocks = zip(problem.points.split(size), noise.split(size), strict=True)
        return torch.cat([label(*pair) for pair in blocks])


def _scoring(
    problem: Problem, centroids: Tensor
) -> tuple[Callable[[Tensor], Tensor], int]:
    """Minus the distances [n, k] of points, but for a number each; and their block."""
    about = given(problem, centroids)
    if about is None:
        c, _ = prepare_centroids(problem, centroids)
        return partial(_scores_held, problem, c=c), block_for(problem, 1, c.numel())
    form, c, rows, m = about
    expansion = expand(problem, form, rows, m)

    def score(x: Tensor) -> Tensor:
        scores = form.scale * form.scores(form.embed(x), expansion, held=True)
        return masked(scores, problem.active)

    return score, block_for(problem, *c.shape)


def _labeling(problem: Problem, about: Given) -> Callable[[Tensor], Tensor]:
    """Of embedded points the labels, [n], without gradient."""
    with torch.no_grad():
        expansion = expand(problem, about.form, about.rows, about.anchor)

    def label(x: Tensor) -> Tensor:
        with torch.no_grad():
            score = about.form.scores(x, expansion, held=True)
            return masked(score, problem.active).max(1).indices

    return label


def _hard_sums(problem: Problem, about: Given) -> tuple[Tensor, Tensor, Tensor]:
    """Of e = x − c at the label: Σ w distance, and Σ w and shifts Σ w e by label."""
    form, c, _, m = about
    label = _labeling(problem, about)

    def block(x: Tensor, weights: Tensor | None, c: Tensor) -> tuple[Tensor, ...]:
        x, w = prepare_rows(x, weights, m)
        x = form.embed(x)
        labels = label(x)
        own = rows_of(form.embed(c), labels)
        if weights is not None:
            x = _fill(form, x, w, own.detach())
        # Loss and shifts from the residual itself: Σ w x − n c, or an expanded
        # distance, would cancel far from the origin.
        e = x - own
        loss = (w * form.cost(x, own, e)).sum()
        weighed = e if weights is None else w[:, None] * e
        return loss, *sums_by_label(labels, len(c), w, weighed)

    loss, counts, shifts = over_points(block, problem, c, block_for(problem, *c.shape))
    if problem.remainder is None:
        return loss, counts, shifts
    # At c + r, with u the shifts at c: shifts u − n r and, as ∂loss/∂c is −pull(u), the
    # loss less Σ r·(pull(u) + pull(u − n r))/2.
    r = problem.remainder.to(shifts.dtype)
    less = shifts - counts[:, None] * r
    pull = form.pull(c, shifts + less, 2 * counts)
    # An infinite loss stays one, whatever the shifts are.
    finite = loss - 0.5 * (r * pull).sum()
    return torch.where(loss.isfinite(), finite, loss), counts, less


def _soft_sums(problem: Problem, about: Given) -> tuple[Tensor, ...]:
    """Free energy −T Σ w log Σ_j exp(−distance_j/T), Σ w r, shifts Σ w r (x − c)."""
    form, c, _, m = about
    label = _labeling(problem, about)

    def block(x: Tensor, weights: Tensor | None, c: Tensor) -> tuple[Tensor, ...]:
        x, w = prepare_rows(x, weights, m)
        x, c = form.embed(x), form.embed(c)
        if weights is not None:
            x = _fill(form, x, w, rows_of(c.detach(), label(x)))
        expansion = expand(problem, form, c, m)
        score = form.scores(x, expansion)
        labels = masked(score.detach(), problem.active).max(1).indices
        # The distance to the nearest itself, and scores for the differences from it.
        own = rows_of(c, labels)
        e = x - own
        if problem.remainder is not None and form.is_invariant:
            e = e - problem.remainder.to(e.dtype).index_select(0, labels)
        score = form.scale * score
        best = score.gather(1, labels[:, None])[:, 0]
        above, r = _soften(masked(score, problem.active), problem.temperature)
        # A difference whose value is zero and whose derivative is not.
        above = above + (best.detach() - best)
        wr = r if weights is None else w[:, None] * r
        counts = wr.sum(0)
        # Σ w r (x − c) = Σ w r y − n b with y and b from the origin, and near it.
        y, b = x - expansion.origin, expansion.centers
        shifts = product_of_rows(wr, y) - counts[:, None] * b
        return (w * (form.cost(x, own, e) - above)).sum(), counts, shifts

    return over_points(block, problem, c, block_for(problem, *c.shape))


def _fill(form: Form, x: Tensor, w: Tensor, own: Tensor) -> Tensor:
    """Embedded points, or their centroids where w = 0 and their cost is not finite."""
    with torch.no_grad():
        costs = form.cost(x, own, x - own)
    return fill_rows(x, w, costs, own)


def _distance_sums(problem: Problem, centroids: Tensor) -> tuple[Tensor, ...]:
    """Without shifts: what ∂loss/∂c is, autograd knows."""
    c, fill = prepare_centroids(problem, centroids, with_data=True)
    t, distance = problem.temperature, problem.distance

    def block(x: Tensor, weights: Tensor | None, c: Tensor) -> tuple[Tensor, ...]:
        x, w = prepare_rows(x, weights, fill)
        if weights is not None:
            x = fill_rows(x, w, _scores_held(problem, x, c).amax(1), fill)
        if t is None:
            labels = _scores_held(problem, x, c).max(1).indices
            loss = (w * evaluate(distance, x, rows_of(c, labels))).sum()
            return loss, *sums_by_label(labels, len(c), w)
        costs = pairwise(x, c, distance=distance)
        score = masked(-costs, problem.active)
        above, r = _soften(score, t)
        return -(w * (score.detach().amax(1) + above)).sum(), (w[:, None] * r).sum(0)

    # A point needs all pairs [k, d].
    return over_points(block, problem, c, block_for(problem, 1, c.numel()))


def _scores_held(problem: Problem, x: Tensor, c: Tensor) -> Tensor:
    """Minus the distances, [n, k], without gradient: the nearest has the largest."""
    with torch.no_grad():
        return masked(-pairwise(x, c, distance=problem.distance), problem.active)


def _soften(score: Tensor, t: Any) -> tuple[Tensor, Tensor]:
    """T log Σ_j exp(score_j / T), less the largest score, and softmax(score / T).

    [n] and [n, k], however cold; the largest is held constant.
    """
    scaled, out = below_largest(score, t, -1000)
    scaled = scaled.masked_fill(out, -torch.inf)
    return t * scaled.logsumexp(1), scaled.softmax(1)
