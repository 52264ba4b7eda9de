"""Layers: the loss and the quantizers as `nn.Module`, thin over the functions.

Under `torch.compile` work as one graph (`fullgraph=True`), with their gradients: both
modules, in training and in eval mode, the distances, `pairwise`, `statistics`,
`assign`, the losses, `quantize`, `nsvq`, `init`, `update`, the maps from logits to
rows, and the estimators but for three. With graph breaks only, and the same values and
gradients: the estimators `rebar`, `blackbox` and `implicit_mle`, which differentiate
the cost themselves; `update` with `empty="farthest"`; and `fit`, which looks at values
to know when to stop. Not at all: second derivatives through a compiled function, which
torch does not have; compile a `torch.func.hessian` instead. A temperature that changes
is best a tensor: a number may be a program per value. Build `ema(...)` outside.

Under `torch.autocast` distances, statistics, losses and fits, and their gradients, are
those outside it: float32 or wider. What you hand in as a function (a distance, an
estimator of a gradient, a cost) runs under the autocast that it is called in.
"""

from diffkm_torch.modules._loss import KMeansLoss
from diffkm_torch.modules._quantizer import VectorQuantizer

__all__ = ["KMeansLoss", "VectorQuantizer"]
