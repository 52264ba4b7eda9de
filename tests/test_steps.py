"""compare_steps: the same training agrees, another one is caught where it parts."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from test_parameters import Linear
from torch import nn, optim

import diffkm_jax as dk
import diffkm_torch as dt
from diffkm_torch.agreement import compare_steps

RNG = np.random.default_rng(0)
START = {
    "Dense_0": {"kernel": RNG.normal(size=(4, 5)) / 2, "bias": np.zeros(5)},
    "Dense_1": {"kernel": RNG.normal(size=(5, 3)) / 2, "bias": np.zeros(3)},
}
NAMES = {"Dense_0": "0", "Dense_1": "2"}
MODULE = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
BATCHES = [(RNG.normal(size=(8, 4)), RNG.normal(size=(8, 3))) for _ in range(6)]


def dense(p, x):
    return x @ p["kernel"] + p["bias"][None]


def jax_loss(p, x, y):
    hidden = jnp.tanh(dense(p["Dense_0"], x))
    return jnp.mean((dense(p["Dense_1"], hidden) - y) ** 2)


def torch_loss(module, x, y):
    return ((module(x) - y) ** 2).mean()


def compared(ours, theirs, losses=(jax_loss, torch_loss), **options):
    options = {"match": NAMES, "dtypes": ["float64"]} | options
    start, module = options.pop("start", START), options.pop("module", MODULE)
    batches = options.pop("batches", BATCHES)
    pair = ours, theirs
    return compare_steps(*losses, start, module, batches, optimizers=pair, **options)


SGD = optax.sgd(0.1), partial(optim.SGD, lr=0.1)
ADAM = optax.adam(0.01), partial(optim.Adam, lr=0.01)
L2 = optax.add_decayed_weights(0.01)
RMSPROP = partial(optax.rmsprop, 0.01, eps_in_sqrt=False)
TORCH_RMSPROP = partial(optim.RMSprop, lr=0.01, alpha=0.9)

HONEST = {
    "sgd": SGD,
    "momentum": (optax.sgd(0.1, 0.9), partial(optim.SGD, lr=0.1, momentum=0.9)),
    "nesterov": (
        optax.sgd(0.1, 0.9, nesterov=True),
        partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    ),
    "sgd with decay": (
        optax.chain(L2, optax.sgd(0.1, 0.9)),
        partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    ),
    "adam": ADAM,
    "adam injected": (
        optax.inject_hyperparams(optax.adam)(learning_rate=0.01),
        ADAM[1],
    ),
    "adam in groups": (
        optax.multi_transform(
            {"fast": optax.adam(0.1), "slow": optax.adam(0.01)},
            {"Dense_0": "fast", "Dense_1": "slow"},
        ),
        lambda params: optim.Adam(
            [{"params": params[:2], "lr": 0.1}, {"params": params[2:], "lr": 0.01}]
        ),
    ),
    "adam with L2": (
        optax.chain(L2, optax.adam(0.01)),
        partial(optim.Adam, lr=0.01, weight_decay=0.01),
    ),
    "adamw": (
        optax.adamw(0.01, weight_decay=0.01),
        partial(optim.AdamW, lr=0.01, weight_decay=0.01),
    ),
    "adamax": (optax.adamax(0.01), partial(optim.Adamax, lr=0.01)),
    "adadelta": (optax.adadelta(1.0), partial(optim.Adadelta, lr=1.0)),
    "adagrad": (
        optax.adagrad(0.1, initial_accumulator_value=0.1, eps=0.0),
        partial(optim.Adagrad, lr=0.1, initial_accumulator_value=0.1, eps=0.0),
    ),
    "rmsprop": (RMSPROP(), TORCH_RMSPROP),
    "rmsprop with momentum": (
        RMSPROP(momentum=0.9),
        partial(TORCH_RMSPROP, momentum=0.9),
    ),
    "rmsprop centered": (RMSPROP(centered=True), partial(TORCH_RMSPROP, centered=True)),
    "radam": (optax.radam(0.01, eps=1e-16), partial(optim.RAdam, lr=0.01, eps=1e-16)),
}


@pytest.mark.parametrize("name", HONEST)
def test_the_same_optimizer_agrees(name):
    report = compared(*HONEST[name])
    assert report.agree, f"{name}\n{report}"
    assert report.first_step is None
    assert all(s.num_unresolved == 0 for s in report.steps)
    assert all(max(s.scaled.values()) < 1e-12 for s in report.steps)


STATES = {
    "momentum": "trace",
    "adam": "count mu nu",
    "adam injected": "count mu nu",
    "adam in groups": "count mu nu",
    "adamax": "count mu nu",
    "adadelta": "e_g e_x",
    "adagrad": "sum_of_squares",
    "rmsprop centered": "mu nu",
    "rmsprop with momentum": "nu trace",
}


def with_doubled(field, optimizer):
    """The optimizer, which keeps twice of a field beside its state."""

    def kept(state):
        def double(path, leaf):
            names = {getattr(key, "name", "") for key in path}
            return leaf * 2 if field in names else leaf

        return state, jax.tree_util.tree_map_with_path(double, state)

    def update(gradients, state, params=None):
        updates, state = optimizer.update(gradients, state[0], params)
        return updates, kept(state)

    return optax.GradientTransformation(lambda p: kept(optimizer.init(p)), update)


@pytest.mark.parametrize(
    ("name", "field"), [(n, f) for n, fields in STATES.items() for f in fields.split()]
)
def test_a_state_that_differs_is_caught_where_no_step_does(name, field):
    ours, theirs = HONEST[name]
    report = compared(with_doubled(field, ours), theirs)
    p = report.parting
    assert (p.step, p.kind, p.field) == (1, "state", field)
    assert p.jax_value == pytest.approx(2 * p.torch_value) or field == "trace"
    assert report.steps[-1].scaled["parameter"] < 1e-12


def test_what_only_one_side_keeps_is_named():
    assert compared(*HONEST["rmsprop"]).not_compared == ("step of torch",)
    assert compared(*HONEST["adam"]).not_compared == ()
    theirs = partial(optim.SGD, lr=0.1, momentum=0.9)
    report = compared(optax.adam(0.1), theirs)
    assert set(report.not_compared) == {
        "count of optax",
        "mu of optax",
        "nu of optax",
        "momentum_buffer of torch",
    }


def test_a_clip_that_is_not_reached_agrees_and_one_that_is_parts_by_torchs_eps():
    def clipped(norm, **options):
        ours = optax.chain(optax.clip_by_global_norm(norm), ADAM[0])
        return compared(ours, ADAM[1], max_norm=norm, **options)

    assert clipped(50.0).agree
    report = clipped(0.1)
    assert report.first_step == 1
    assert report.parting.field == "mu"
    assert report.parting.scaled < 1e-4
    assert report.parting.hint.startswith("clip_grad_norm_ divides by the norm + 1e-6")
    assert clipped(0.1, tol=1e-4).agree


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            optax.cosine_decay_schedule(0.01, 6),
            partial(optim.lr_scheduler.CosineAnnealingLR, T_max=6),
        ),
        (
            optax.piecewise_constant_schedule(0.01, {3: 0.1}),
            partial(optim.lr_scheduler.MultiStepLR, milestones=[3]),
        ),
    ],
)
def test_schedules_agree(ours, theirs):
    assert compared(optax.adam(ours), ADAM[1], scheduler=theirs).agree
    assert not compared(optax.adam(ours), ADAM[1]).agree


def uncorrected(b1=0.9, b2=0.999, eps=1e-8):
    """Adam without the correction for bias."""

    def init(params):
        zeros = [jax.tree.map(jnp.zeros_like, params) for _ in range(2)]
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), *zeros)

    def update(g, state, params=None):
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, g)
        nu = jax.tree.map(lambda n, g: b2 * n + (1 - b2) * g**2, state.nu, g)
        step = jax.tree.map(lambda m, n: -0.01 * m / (jnp.sqrt(n) + eps), mu, nu)
        return step, optax.ScaleByAdamState(state.count + 1, mu, nu)

    return optax.GradientTransformation(init, update)


FIRST = "Dense_0.bias"
DEFECTS = {
    "b1": (optax.adam(0.01, b1=0.8), ADAM[1], 1, "mu", "b1 is 0.8 in JAX, 0.9 in"),
    "b2": (optax.adam(0.01, b2=0.99), ADAM[1], 1, "nu", "b2 is 0.99 in JAX, 0.999"),
    "the decay of rmsprop": (
        RMSPROP(),
        partial(optim.RMSprop, lr=0.01),
        1,
        "nu",
        "decay is 0.9 in JAX, 0.99 in torch",
    ),
    "the start of rmsprop": (
        RMSPROP(initial_scale=1.0),
        TORCH_RMSPROP,
        1,
        "nu",
        "it starts 1 higher in JAX: optax's initial_scale",
    ),
    "the start of adagrad": (
        optax.adagrad(0.1),
        partial(optim.Adagrad, lr=0.1),
        1,
        "sum_of_squares",
        "it starts 0.1 higher in JAX: optax's initial_accumulator_value",
    ),
    "eps in the root": (
        optax.adam(0.01, eps=0.0, eps_root=1e-8),
        ADAM[1],
        1,
        "",
        "JAX divides by √(v + 1e-08), torch by √v + 1e-08",
    ),
    "eps of rmsprop": (
        optax.rmsprop(0.01),
        TORCH_RMSPROP,
        1,
        "",
        "JAX divides by √(v + 1e-08), torch by √v + 1e-08",
    ),
    "eps of adagrad": (
        optax.adagrad(0.1, initial_accumulator_value=0.0, eps=1e-10),
        partial(optim.Adagrad, lr=0.1),
        1,
        "",
        "JAX divides by √(v + 1e-10), torch by √v + 1e-10",
    ),
    "the size of eps": (
        optax.adam(0.01, eps=1e-6),
        ADAM[1],
        1,
        "",
        "JAX divides by √v + 1e-06, torch by √v + 1e-08",
    ),
    "no correction of bias": (
        uncorrected(),
        ADAM[1],
        1,
        "",
        "JAX's moments are not corrected for bias",
    ),
    "decay coupled": (
        optax.adamw(0.01, weight_decay=0.01),
        partial(optim.Adam, lr=0.01, weight_decay=0.01),
        1,
        "mu",
        "torch's moment has 0.01 p in it, JAX's not",
    ),
    "decay decoupled": (
        optax.chain(L2, ADAM[0]),
        partial(optim.AdamW, lr=0.01, weight_decay=0.01),
        1,
        "mu",
        "JAX's moment has 0.01 p in it, torch's not",
    ),
    "the defaults of adamw": (
        optax.adamw(0.01),
        partial(optim.AdamW, lr=0.01),
        1,
        "",
        "weight decay decoupled from the gradient is 0.0001 in JAX, 0.01 in torch",
    ),
    "decay on one side": (
        ADAM[0],
        partial(optim.AdamW, lr=0.01),
        1,
        "",
        "weight decay decoupled from the gradient is 0 in JAX, 0.01 in torch",
    ),
    "decay beside rmsprop": (
        optax.chain(
            optax.scale_by_rms(eps_in_sqrt=False),
            L2,
            optax.scale_by_learning_rate(0.01),
        ),
        TORCH_RMSPROP,
        1,
        "",
        "weight decay decoupled from the gradient is 0.01 more in JAX",
    ),
    "the learning rate": (
        optax.sgd(0.1),
        partial(optim.SGD, lr=0.2),
        1,
        "",
        "torch's whole step is 2 times JAX's",
    ),
    "a schedule": (
        optax.sgd(lambda count: jnp.where(count < 3, 0.1, 0.2)),
        SGD[1],
        4,
        "",
        "torch's whole step is 0.5 times JAX's",
    ),
    "a schedule in float32": (
        optax.sgd(optax.exponential_decay(0.1, 1, 0.9)),
        partial(optim.SGD, lr=0.1),
        1,
        "",
        "the whole step is off by 1.5e-08, a rounding to float32",
    ),
    "nesterov in optax": (
        optax.sgd(0.1, 0.9, nesterov=True),
        partial(optim.SGD, lr=0.1, momentum=0.9),
        1,
        "",
        "JAX's momentum is Nesterov's, torch's is not",
    ),
    "nesterov in torch": (
        optax.sgd(0.1, 0.9),
        partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
        1,
        "",
        "torch's momentum is Nesterov's, JAX's is not",
    ),
    "dampening": (
        optax.sgd(0.1, 0.9),
        partial(optim.SGD, lr=0.1, momentum=0.9, dampening=0.5),
        2,
        "trace",
        "torch's dampening is 0.5, optax's trace has none",
    ),
    "amsgrad": (
        optax.amsgrad(0.01),
        partial(optim.Adam, lr=0.01, amsgrad=True),
        1,
        "nu_max",
        "torch keeps the largest second moment as it is, optax corrects its bias",
    ),
    "nadam": (
        optax.nadam(0.01),
        partial(optim.NAdam, lr=0.01),
        1,
        "",
        "torch's NAdam warms its momentum up by momentum_decay",
    ),
    "nadam without its warmup": (
        optax.nadam(0.01),
        partial(optim.NAdam, lr=0.01, momentum_decay=1e4),
        1,
        "",
        "torch's NAdam keeps mu_product in float32",
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_another_optimizer_is_caught_at_its_step_and_explained(name):
    ours, theirs, step, field, hint = DEFECTS[name]
    report = compared(ours, theirs)
    assert not report.agree
    assert report.first_step == step
    assert report.parting.kind == ("state" if field else "parameter")
    assert report.parting.field == field
    assert report.parting.hint.startswith(hint)
    assert f"STEPS PART at step {step} of 6" in str(report)
    assert f"hint: {hint}" in str(report)


def test_a_clip_on_one_side_is_caught():
    report = compared(*ADAM, max_norm=0.1)
    assert report.parting.field == "mu"
    assert "times as long: clipped on one side" in report.parting.hint
    report = compared(*SGD, max_norm=0.1)
    assert report.parting.kind == "parameter"
    assert report.parting.hint.endswith("or clipping")
    both = optax.chain(optax.clip_by_global_norm(0.1), SGD[0])
    report = compared(both, SGD[1], max_norm=0.1)
    assert report.parting.hint.startswith("clip_grad_norm_ divides by the norm + 1e-6")


class Negated(torch.autograd.Function):
    """The identity, whose gradient has the wrong sign."""

    @staticmethod
    def forward(ctx, array):
        return array.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def with_wrong_sign(module, x, y):
    last = module[2]
    hidden = module[1](module[0](x))
    found = hidden @ Negated.apply(last.weight).T + last.bias
    return ((found - y) ** 2).mean()


def test_a_wrong_sign_in_the_gradient_of_one_layer_is_caught_in_that_array():
    report = compared(*ADAM, (jax_loss, with_wrong_sign))
    assert report.first_step == 1
    p = report.parting
    assert (p.kind, p.path, p.name) == ("gradient", "Dense_1.kernel", "2.weight")
    assert p.others == ()
    assert p.hint == "the signs are opposite"
    assert p.torch_index == p.index[::-1]
    assert p.jax_value == pytest.approx(-p.torch_value)


def test_a_transposed_start_is_caught_in_the_first_loss_and_named():
    square = {"kernel": RNG.normal(size=(4, 4)), "bias": RNG.normal(size=4)}
    batches = [(x, x**2) for x, _ in BATCHES]
    options = {"start": square, "module": nn.Linear(4, 4), "batches": batches}
    losses = lambda p, x, y: jnp.mean((dense(p, x) - y) ** 2), torch_loss
    assert compared(*SGD, losses, match=None, **options).agree
    wrong = {"kernel": ("weight", (0, 1))}
    report = compared(*SGD, losses, match=wrong, **options)
    assert (report.first_step, report.parting.kind) == (1, "loss")
    assert report.parting.hint.startswith("with kernel transposed the losses agree")


def test_an_unused_parameter_that_torch_skips_is_named():
    start = START | {"unused": np.ones(3)}
    module = nn.ModuleDict({"layers": nn.Sequential(*MODULE)})
    module.register_parameter("unused", nn.Parameter(torch.ones(3)))
    names = {"Dense_0": "layers.0", "Dense_1": "layers.2"}
    report = compared(
        optax.adamw(0.01, weight_decay=0.01),
        partial(optim.AdamW, lr=0.01),
        (jax_loss, lambda m, x, y: torch_loss(m["layers"], x, y)),
        start=start,
        module=module,
        match=names,
    )
    assert (report.parting.kind, report.parting.path) == ("parameter", "unused")
    assert report.parting.hint.startswith("torch skips a parameter whose gradient is N")


def test_a_parameter_that_is_frozen_in_torch_is_named():
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    module[0].requires_grad_(False)
    report = compared(*ADAM, module=module)
    assert (report.parting.kind, report.parting.path) == ("gradient", FIRST)
    assert report.parting.hint.startswith("torch has no gradient for it")


def test_what_is_only_rounding_has_no_verdict_and_the_rest_agrees():
    # A bias before a batch norm has the gradient 0: Adam makes steps of its rounding.
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    start = {
        "0": {"kernel": RNG.normal(size=(4, 8)), "bias": np.zeros(8)},
        "1": {"scale": np.ones(8), "bias": np.zeros(8)},
        "2": {"kernel": RNG.normal(size=(8, 3)), "bias": np.zeros(3)},
    }

    def normalized(p, x, y):
        hidden = dense(p["0"], x)
        centered = hidden - hidden.mean(0, keepdims=True)
        hidden = centered / jnp.sqrt(hidden.var(0, keepdims=True) + 1e-5)
        hidden = hidden * p["1"]["scale"][None] + p["1"]["bias"][None]
        return jnp.mean((dense(p["2"], hidden) - y) ** 2)

    report = compared(
        *ADAM, (normalized, torch_loss), start=start, module=module, match=None
    )
    assert report.agree, report
    # Its gradient, its two moments, and the bias itself.
    assert [s.num_unresolved for s in report.steps] == [4] * 6
    assert "not judged: 24 of" in str(report)


def test_a_chaotic_training_ends_without_a_verdict():
    report = compare_steps(
        lambda p, x: jnp.sum(jnp.cos(p["a"] * x)),
        lambda m, x: torch.cos(m["a"] * x).sum(),
        {"a": np.array([0.3, 0.7])},
        nn.ParameterDict({"a": torch.zeros(2)}),
        [np.ones(2)] * 60,
        optimizers=(optax.sgd(4.0), partial(optim.SGD, lr=4.0)),
        dtypes=["float64"],
    )
    assert not report.agree
    assert report.parting is None
    assert 10 < report.first_unresolved < 60
    assert f"No verdict from step {report.first_unresolved} of 60 on" in str(report)
    assert "  ..." in str(report)


def test_float32_shows_each_sides_own_error_and_decides_alone_only_if_asked():
    report = compared(*ADAM, dtypes=["float32", "float64"])
    assert report.dtype == "float64"
    assert report.agree
    last = report.steps[-1]
    assert 1e-9 < last.torch_error < 1e-5
    assert 1e-9 < last.jax_error < 1e-3
    report = compared(*ADAM, dtypes=["float32"])
    assert report.dtype == "float32"
    assert report.agree
    assert report.steps[-1].jax_error is None
    wrong = compared(optax.adam(0.01, b2=0.99), ADAM[1], dtypes=["float32"])
    assert wrong.parting.field == "nu"


@pytest.mark.parametrize("x64", [True, False])
@pytest.mark.parametrize("jit", [True, False])
def test_x64_is_switched_on_for_the_comparison_and_restored(x64, jit):
    with jax.enable_x64(x64):
        report = compared(*ADAM, jit=jit)
        assert jax.config.values["jax_enable_x64"] == x64
    assert report.agree
    assert report.dtype == "float64"


def test_the_module_and_the_start_are_left_untouched():
    before = {name: t.clone() for name, t in MODULE.state_dict().items()}
    start = jax.tree.map(np.copy, START)
    compared(*ADAM)
    for name, tensor in MODULE.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    jax.tree.map(np.testing.assert_array_equal, START, start)
    assert all(p.grad is None for p in MODULE.parameters())


def test_buffers_of_the_tree_start_in_torch_and_are_held():
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
    arrays = {n: RNG.uniform(1, 2, 3) for n in ("scale", "bias", "mean", "var")}
    start = {
        "params": {
            "0": {"kernel": RNG.normal(size=(4, 3)), "bias": np.zeros(3)},
            "1": {n: arrays[n] for n in ("scale", "bias")},
        },
        "batch_stats": {"1": {n: arrays[n] for n in ("mean", "var")}},
    }

    def normalized(tree, x, y):
        p, held = tree["params"], tree["batch_stats"]["1"]
        hidden = (dense(p["0"], x) - held["mean"][None]) / jnp.sqrt(
            held["var"][None] + 1e-5
        )
        found = hidden * p["1"]["scale"][None] + p["1"]["bias"][None]
        return jnp.mean((found - y) ** 2)

    losses = normalized, torch_loss
    options = {"start": start, "module": module, "match": None}
    report = compared(*ADAM, losses, **options)
    assert report.agree, report
    assert report.matches["1.mean"] == "1.running_mean"


def test_a_module_of_arrays_and_functions_is_trained_with_its_own_names():
    start = [
        Linear(RNG.normal(size=(5, 4)), np.zeros(5), jnp.tanh),
        Linear(RNG.normal(size=(3, 5)), np.zeros(3)),
    ]

    def ours(layers, x, y):
        for layer in layers:
            x = x @ layer.weight.T + layer.bias[None]
            x = x if layer.activation is None else layer.activation(x)
        return jnp.mean((x - y) ** 2)

    options = {"start": start, "match": {"0": "0", "1": "2"}}
    assert compared(*ADAM, (ours, torch_loss), **options).agree


def test_a_row_that_nothing_moves_agrees():
    batches = [(x * np.array([1.0, 1, 1, 0]), y) for x, y in BATCHES]
    report = compared(*ADAM, batches=batches)
    assert report.agree
    assert all(s.num_unresolved == 0 and s.floor < 1e-9 for s in report.steps)


def test_nan_on_one_side_only_parts():
    def theirs(module, x, y):
        is_third = (x == torch.tensor(BATCHES[2][0], dtype=x.dtype)).all()
        return torch_loss(module, x, y) * torch.where(is_third, torch.nan, 1.0)

    report = compared(*ADAM, (jax_loss, theirs))
    assert (report.first_step, report.parting.kind) == (3, "loss")


def test_labels_trees_and_tensors_are_batches():
    def ours(p, batch):
        logits = jax.nn.log_softmax(dense(p, batch["x"]))
        return -jnp.mean(jnp.take_along_axis(logits, batch["y"][:, None], 1))

    def theirs(module, batch):
        return nn.functional.cross_entropy(module(batch["x"]), batch["y"])

    batches = [{"x": torch.tensor(x), "y": np.arange(8) % 3} for x, _ in BATCHES]
    start = {"kernel": RNG.normal(size=(4, 3)), "bias": np.zeros(3)}
    options = {"start": start, "module": nn.Linear(4, 3), "batches": batches}
    both = ["float64", "float32"]
    assert compared(*ADAM, (ours, theirs), match=None, dtypes=both, **options).agree


def test_a_codebook_is_trained_the_same():
    report = compare_steps(
        lambda p, x: dk.soft_kmeans_loss(x, p["centroids"], temperature=0.5),
        lambda m, x: dt.soft_kmeans_loss(x, m["centroids"], temperature=0.5),
        {"centroids": RNG.normal(size=(3, 2))},
        nn.ParameterDict({"centroids": torch.zeros(3, 2)}),
        RNG.normal(size=(5, 20, 2)),
        optimizers=ADAM,
        dtypes=["float64"],
    )
    assert report.agree, report
    assert len(report.steps) == 5


def test_a_report_is_for_people_and_for_machines():
    report = compared(optax.adam(0.01, b2=0.99), ADAM[1])
    found = json.loads(json.dumps(report.to_dict()))
    assert found["first_step"] == 1
    assert found["parting"]["torch_field"] == "exp_avg_sq"
    assert found["matches"]["Dense_0.kernel"] == "0.weight"
    lines = str(report).splitlines()
    assert lines[0].endswith(
        "first in state nu of Dense_0.bias (exp_avg_sq of 0.bias in torch)"
    )
    assert sum(line.strip()[:1].isdigit() for line in lines) == 6


# What is refused ----------------------------------------------------------------------


def noisy(module, x, y):
    return torch_loss(module, x, y) + torch.rand((), dtype=x.dtype)


def other_parameters(params):
    del params
    return optim.Adam(MODULE.parameters())


DROPOUT = nn.Sequential(MODULE[0], nn.Dropout(), MODULE[2])
NAN = [(np.full((8, 4), np.nan), BATCHES[0][1])]
REFUSED = [
    ({"jax_loss": 3}, TypeError, "jax_loss must be a function, got 3"),
    ({"torch_loss": None}, TypeError, "torch_loss must be a function"),
    ({"scheduler": 3}, TypeError, "scheduler must be a function of the optimizer"),
    ({"module": 3}, TypeError, "module must be a torch.nn.Module, got 3"),
    (
        {"module": nn.Linear(4, 5, device="meta")},
        ValueError,
        "module must be on the CPU, but weight is on device meta",
    ),
    ({"optimizers": ADAM[0]}, TypeError, r"optimizers must be \(optax transfor"),
    ({"optimizers": ADAM[::-1]}, TypeError, "optimizers .* the other way round"),
    ({"optimizers": (ADAM[1],) * 2}, TypeError, "optimizers must be .* got first"),
    ({"optimizers": (ADAM[0], 3)}, TypeError, "optimizers must be .* got second 3"),
    (
        {"optimizers": (ADAM[0], optim.Adam(MODULE.parameters()))},
        TypeError,
        "optimizers must be .* hand in partial",
    ),
    (
        {"optimizers": (ADAM[0], len)},
        TypeError,
        "optimizers must have second a function .* it returned 4",
    ),
    (
        {"optimizers": (ADAM[0], other_parameters)},
        ValueError,
        "optimizers must have second a function that uses the parameters it is given",
    ),
    ({"batches": []}, ValueError, "batches must hold one for each step, got none"),
    ({"batches": 3}, TypeError, "batches must be a sequence"),
    ({"batches": ["a"]}, TypeError, r"batches\[0\] must hold arrays .* got 'a'"),
    ({"batches": [jax.random.key(0)]}, TypeError, r"batches\[0\] .* a random key"),
    ({"batches": [np.ones(2) * 1j]}, TypeError, r"batches\[0\] .* complex128"),
    ({"batches": NAN}, ValueError, r"batches\[0\] must be without NaN"),
    ({"dtypes": "float64"}, ValueError, "dtypes must be among"),
    ({"dtypes": ["float16"]}, ValueError, "dtypes must be among"),
    ({"tol": 0}, ValueError, "tol must be between 0 and 1, got 0"),
    ({"max_norm": 0}, ValueError, "max_norm must be a positive number, got 0"),
    ({"match": None}, ValueError, "params must match the parameters of module"),
    (
        {"params": START | {"Dense_1": {"kernel": np.ones((5, 3))}}},
        ValueError,
        r"match must match .* none in params, 2.bias \(3,\) in module",
    ),
    (
        {"params": jax.tree.map(lambda a: a * np.nan, START)},
        ValueError,
        "params must be finite, but Dense_0.bias is not",
    ),
    (
        {"jax_loss": lambda p, x, y: x},
        ValueError,
        r"jax_loss must return a scalar array, \[\], got shape \(8, 4\)",
    ),
    (
        {"torch_loss": lambda m, x, y: m(x)},
        ValueError,
        r"torch_loss must return a scalar array, \[\], got shape \(8, 3\)",
    ),
    (
        {"torch_loss": lambda m, x, y: torch_loss(m, x, y).item()},
        ValueError,
        r"torch_loss must return a scalar array, \[\], got 1\.",
    ),
    (
        {"torch_loss": lambda m, x, y: torch_loss(m, x, y).float()},
        TypeError,
        "torch_loss must return the dtype of its parameters, float64, got float32",
    ),
    (
        {"jax_loss": lambda p, x, y: jax_loss(p, x, y).astype(jnp.float32)},
        TypeError,
        "jax_loss must return the dtype of its parameters, float64, got float32",
    ),
    (
        {"torch_loss": lambda m, x, y: torch_loss(m, x, y).detach()},
        ValueError,
        "torch_loss must depend on the parameters of the module it is given",
    ),
    (
        {"jax_loss": lambda p, x, y: jax_loss(p, x, y) / 0.0},
        ValueError,
        "jax_loss must be finite at the start, got inf",
    ),
    ({"torch_loss": noisy}, ValueError, "torch_loss must return the same for the same"),
    ({"module": DROPOUT}, ValueError, r"torch_loss .* module.eval\(\) for dropout"),
]


@pytest.mark.parametrize(("change", "error", "message"), REFUSED)
def test_what_does_not_fit_is_refused_by_name(change, error, message):
    arguments = {
        "jax_loss": jax_loss,
        "torch_loss": torch_loss,
        "params": START,
        "module": MODULE,
        "batches": BATCHES[:2],
        "optimizers": ADAM,
        "match": NAMES,
        "dtypes": ["float64"],
    } | change
    with pytest.raises(error, match=f"^{message}"):
        compare_steps(**arguments)


def test_a_dropout_that_is_switched_off_is_compared():
    def ours(p, x, y):
        return jnp.mean((dense(p["Dense_1"], dense(p["Dense_0"], x)) - y) ** 2)

    module = nn.Sequential(nn.Linear(4, 5), nn.Dropout(), nn.Linear(5, 3)).eval()
    assert compared(*ADAM, (ours, torch_loss), module=module).agree


def test_an_error_says_of_whose_function_it_came():
    with pytest.raises(ZeroDivisionError) as error:
        compared(*ADAM, (lambda p, x, y: 1 / 0, torch_loss))
    arrays = "float64[8, 4], float64[8, 3]"
    note = f"This came of calling jax_loss or optax on arrays {arrays}."
    assert note in error.value.__notes__
