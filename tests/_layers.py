"""Data of the layers' tests, and a function's outputs with their gradients."""

from functools import partial

import numpy as np
import torch

RNG = np.random.default_rng(0)
X = torch.tensor(RNG.normal(size=(24, 3)), dtype=torch.float32)
C = torch.tensor(RNG.normal(size=(4, 3)), dtype=torch.float32)
W = torch.tensor(RNG.uniform(0.2, 2, 24), dtype=torch.float32)
V = torch.tensor(RNG.normal(size=(24, 3)), dtype=torch.float32)
exact = partial(torch.testing.assert_close, rtol=0, atol=0)
close = torch.testing.assert_close


def with_gradients(f, *tensors):
    """All outputs of f, and the gradients of a weighted sum of them."""
    tensors = [t.detach().clone().requires_grad_() for t in tensors]
    out = f(*tensors)
    out = (out,) if isinstance(out, torch.Tensor) else tuple(out)
    moving = [o for o in out if o.requires_grad]
    total = sum((o * torch.arange(1, o.numel() + 1).view_as(o)).sum() for o in moving)
    grads = torch.autograd.grad(total, tensors, allow_unused=True)
    return [o.detach() for o in out], [g for g in grads if g is not None]
