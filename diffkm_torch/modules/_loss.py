"""The k-means loss as a layer."""

from __future__ import annotations

from torch import Tensor, nn

from diffkm_torch._checks import as_rows, check_callable, check_scalar
from diffkm_torch._dtypes import accumulation_dtype
from diffkm_torch._hints import shown
from diffkm_torch.distances import Distance, squared_euclidean
from diffkm_torch.losses import kmeans_loss, soft_kmeans_loss
from diffkm_torch.modules._centroids import as_centroids, name_of, sizes


class KMeansLoss(nn.Module):
    """The k-means loss of points, to centroids that are a parameter.

    It is `kmeans_loss`, or at a temperature `soft_kmeans_loss`. The gradient is exact:
    if squared −2 shifts in the centroids, so that any optimizer does k-means, and if
    hard, 2 w (x − c) in a point; by the total weight if "mean".

    Args:
        centroids: Where to start, [k, d], real, in data units; copied.
        temperature: None for the hard loss, or a positive scalar, in the unit of the
            distance. An attribute: change it between steps to anneal. As an
            `nn.Parameter` it is learned, moved and saved with the layer; else not.
        distance: A function of points and centroids, as `squared_euclidean`.
        reduction: "sum" over the points, or "mean" by total weight, NaN if that is 0.

    Returns:
        From `forward(points, *, weights=None)`, of points [..., d] and non-negative
        weights [...], the loss, [], float32 or wider, in the unit of the distance.

    Raises:
        TypeError: `centroids`, `points` or `weights` is not real, or `distance` is
            not a function.
        ValueError: `centroids` is not [k, d], `points` not [..., d], either has no row,
            `weights` is not [...], `temperature` is not a scalar, or a number and not
            positive, or `reduction` is another word.

    Example:
        >>> layer = dt.KMeansLoss(torch.tensor([[0.0], [10.0]]))
        >>> loss = layer(torch.tensor([[0.0], [1.0], [9.0], [10.0]]))
        >>> loss.backward()
        >>> loss.item(), layer.centroids.grad.tolist()
        (2.0, [[-2.0], [2.0]])

    Source: Bottou & Bengio 1995,
    https://papers.nips.cc/paper/989-convergence-properties-of-the-k-means-algorithms
    """

    def __init__(
        self,
        centroids: Tensor,
        *,
        temperature: float | Tensor | None = None,
        distance: Distance = squared_euclidean,
        reduction: str = "sum",
    ) -> None:
        """Checks its arguments and copies the centroids."""
        super().__init__()
        centroids = as_centroids(centroids)
        if temperature is not None:
            dtype = accumulation_dtype(centroids)
            check_scalar("temperature", temperature, dtype)
        check_callable("distance", distance, 2)
        if reduction not in ("sum", "mean"):
            raise ValueError(
                f"reduction must be 'sum' or 'mean', got {shown(reduction)}"
            )
        self.centroids = nn.Parameter(centroids.detach().clone())
        self.temperature = temperature
        self.distance = distance
        self.reduction = reduction

    def forward(self, points: Tensor, *, weights: Tensor | None = None) -> Tensor:
        """The loss of points [..., d] with weights [...]."""
        x, w = as_rows(points, weights, self.centroids)
        c, options = self.centroids, {"weights": w, "distance": self.distance}
        if self.temperature is None:
            loss = kmeans_loss(x, c, **options)
        else:
            loss = soft_kmeans_loss(x, c, temperature=self.temperature, **options)
        if self.reduction == "sum":
            return loss
        return loss / (len(x) if w is None else w.to(loss.dtype).sum())

    def extra_repr(self) -> str:
        """What `print` shows between the parentheses."""
        options = f"temperature={self.temperature}, distance={name_of(self.distance)}"
        return f"{sizes(self.centroids)}, {options}, reduction={self.reduction!r}"
