"""One process of two that train a codebook, which test_codebooks.py starts.

    PYTHONPATH=. python tests/codebooks.py FOLDER PROCESS

A case is the options of a layer, and batches of points and weights by process and step.
"""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import diffkm_torch as dt

PROCESSES, DECAY = 2, 0.7
GENERATOR = torch.Generator().manual_seed(0)


def drawn(*shape):
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


C = drawn(4, 3)
# Of different numbers of points, and weights in one process only.
DRAWN = [
    [(drawn(9, 3), None) for _ in range(4)],
    [(drawn(5, 3), drawn(5).exp()) for _ in range(4)],
]
POSITIVE = [[(x.exp(), w) for x, w in batches] for batches in DRAWN]


def changed(process, change, steps=(1, 2)):
    """The batches, some of them changed in one process."""
    batches = [list(own) for own in DRAWN]
    for step in steps:
        x, w = batches[process][step]
        batches[process][step] = change(x, x.new_ones(len(x)) if w is None else w)
    return batches


def nowhere(x, w):
    return torch.full_like(x, torch.nan), w


def far(x, w):
    return torch.where(torch.arange(len(x))[:, None] < 2, 1.7e308, x), w


def of_some(x, w):
    return torch.where(torch.arange(len(x))[:, None] % 2 > 0, torch.inf, x), w


CASES = {
    "plain": ({}, DRAWN),
    "cosine": ({"distance": dt.cosine}, DRAWN),
    "kl": ({"distance": dt.kl_divergence}, POSITIVE),
    "some not finite": ({}, changed(1, of_some)),
    "none in the first": ({}, changed(0, nowhere)),
    "none in the second": ({}, changed(1, nowhere)),
    "weights not finite": ({}, changed(0, lambda x, w: (x, w / 0))),
    "no weight": ({}, changed(1, lambda x, w: (x, 0 * w))),
    "none at all": ({}, [[nowhere(*pair) for pair in own] for own in DRAWN]),
    "a sum that overflows": ({}, changed(1, far)),
    "heavy": ({}, changed(0, lambda x, w: (x, w * 2.0**1000))),
    "light": ({}, [[(x, x[:, 0].exp() * 2.0**-1040) for x, _ in a] for a in DRAWN]),
}


# Six codes of which the last three are nowhere near, and are set anew.
FAR = torch.cat([C[:3], C[:3] + 90])
RESTARTS = {
    "plain": DRAWN,
    "some not finite": changed(1, of_some, steps=(0, 1, 2, 3)),
    "none in the first": changed(0, nowhere, steps=(0, 1, 2, 3)),
    "none in the second": changed(1, nowhere, steps=(0, 1, 2, 3)),
    "no weight": changed(1, lambda x, w: (x, 0 * w), steps=(0, 1, 2, 3)),
    "one row": [[(x[:1], None) for x, _ in own] for own in DRAWN],
    "none at all": [[nowhere(*pair) for pair in own] for own in DRAWN],
}


def restarting(batches, process, compiles=False):
    """What a layer keeps after every batch."""
    torch.manual_seed(process)
    layer = dt.VectorQuantizer(FAR, decay=DECAY, min_count=0.5)
    call = torch.compile(layer, backend="eager", fullgraph=True) if compiles else layer
    found = []
    for points, weights in batches:
        call(points, weights=weights)
        found.append({name: a.clone() for name, a in layer.state_dict().items()})
    return found


def layer_of(options):
    c = C.exp() if options.get("distance") is dt.kl_divergence else C
    return dt.VectorQuantizer(c, decay=DECAY, **options)


def trained(layer, batches):
    """What a layer keeps after one process has taken its batches."""
    for points, weights in batches:
        layer(points, weights=weights)
    return layer.state_dict()


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, 3, dtype=torch.float64)
        self.codebook = layer_of({})
        with torch.no_grad():
            self.encoder.weight.copy_(C[:3])
            self.encoder.bias.copy_(C[3])

    def forward(self, points, weights):
        out = self.codebook(self.encoder(points), weights=weights)
        return ((out.values - points) ** 2).sum() + out.commitment_loss


def descended(model, batches, share=1.0):
    """A model after steps along a share of its gradient."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01 * share)
    for points, weights in batches:
        optimizer.zero_grad()
        model(points, weights).backward()
        optimizer.step()
    return model


def results(process):
    found = {
        name: trained(layer_of(options), batches[process])
        for name, (options, batches) in CASES.items()
    }
    for name, batches in RESTARTS.items():
        found[f"restarts, {name}"] = restarting(batches[process], process)
    found["restarts, compiled"] = restarting(DRAWN[process], process, compiles=True)
    alone = dist.new_subgroups(1)[0]
    found["alone"] = trained(layer_of({"process_group": alone}), DRAWN[process])
    everyone = dist.new_group([0, 1])
    found["group"] = trained(layer_of({"process_group": everyone}), DRAWN[process])
    compiled = torch.compile(layer_of({}), backend="eager", fullgraph=True)
    found["compiled"] = trained(compiled, DRAWN[process])
    for broadcast in (True, False):
        model = nn.parallel.DistributedDataParallel(
            Autoencoder(), broadcast_buffers=broadcast
        )
        model = descended(model, DRAWN[process]).module
        found[f"parallel, broadcast {broadcast}"] = model.state_dict()
    return found


if __name__ == "__main__":
    folder, process = Path(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=process,
        world_size=PROCESSES,
        timeout=timedelta(seconds=60),
    )
    torch.save(results(process), folder / f"{process}.pt")
    dist.destroy_process_group()
