"""Codebooks of moving averages in two processes are that of one with all points."""

import codebooks
import pytest
import torch
from _processes import check_ends, running
from torch.testing import assert_close
from twins import exact

import diffkm_torch as dt

# In seconds; on two idle cores it takes 5.
LIMIT = 120


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two processes found, by the name of the case."""
    folder = tmp_path_factory.mktemp("codebooks")
    with running("codebooks.py", *((folder, i) for i in range(2))) as processes:
        check_ends(processes, LIMIT)
    return [torch.load(folder / f"{i}.pt") for i in range(2)]


def together(batches):
    """The batches of all processes as those of one."""
    for step in zip(*batches, strict=True):
        weights = [x.new_ones(len(x)) if w is None else w for x, w in step]
        yield torch.cat([x for x, _ in step]), torch.cat(weights)


def close(given, expected):
    assert_close(dict(given), dict(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", codebooks.CASES)
def test_codebooks_are_equal_and_that_of_all_points(found, case):
    options, batches = codebooks.CASES[case]
    first, second = (dict(held[case]) for held in found)
    exact(first, second)
    close(first, codebooks.trained(codebooks.layer_of(options), together(batches)))
    moved = bool((first["centroids"] != codebooks.layer_of(options).centroids).any())
    assert moved == (case != "none at all")


@pytest.mark.parametrize("case", codebooks.RESTARTS)
def test_codes_are_set_anew_to_the_same_rows_of_any_process(found, case):
    batches = codebooks.RESTARTS[case]
    first, second = (held[f"restarts, {case}"] for held in found)
    optimizer = dt.ema(codebooks.DECAY)
    state = dt.init(codebooks.FAR, optimizer=optimizer)
    for step, (one, other) in enumerate(zip(first, second, strict=True)):
        exact(one, other)
        rows, w = list(together(batches))[step]
        usable = rows.isfinite().all(1) & (w > 0)
        rows, w = rows[usable], w[usable]
        plain = state
        if len(rows) > 0:
            plain, _ = dt.update(rows, state, optimizer=optimizer, weights=w)
        low = plain.opt_state.counts < 0.5
        # The lowest, at most half as many as there are usable rows.
        lowest = plain.opt_state.counts.argsort(stable=True)[: len(rows) // 2]
        is_set = low & torch.zeros(6, dtype=torch.bool).index_fill(0, lowest, True)
        close({"": one["centroids"][~is_set]}, {"": plain.centroids[~is_set]})
        close({"": one["counts"][~is_set]}, {"": plain.opt_state.counts[~is_set]})
        exact(one["counts"][is_set], torch.ones(int(is_set.sum())).double())
        taken = (one["centroids"][is_set][:, None] == rows).all(2)
        assert taken.any(1).all()
        assert taken.any(0).sum() == is_set.sum()
        assert is_set.any() or step > 0 or len(rows) < 2
        counts = dt.optimizers.EmaState(one["counts"])
        state = state._replace(centroids=one["centroids"], opt_state=counts)
    dead = first[-1]["centroids"].abs().amax(1) > 50
    assert int(dead.sum()) == {"none at all": 3, "one row": 1}.get(case, 0)


def test_rows_of_both_processes_become_codes_and_a_compiled_layer_takes_the_same(found):
    sources = set()
    for step, held in enumerate(found[0]["restarts, plain"]):
        for process, own in enumerate(codebooks.DRAWN):
            rows = (held["centroids"][:, None] == own[step][0]).all(2)
            sources |= {process} if rows.any() else set()
    assert sources == {0, 1}
    for one, other in zip(*(h["restarts, compiled"] for h in found), strict=True):
        exact(one, other)
    assert found[0]["restarts, compiled"][-1]["centroids"].abs().max() < 50


@pytest.mark.parametrize("case", ["group", "compiled"])
def test_a_group_of_all_and_a_compiled_layer_are_as_by_default(found, case):
    for held in found:
        given = {name.removeprefix("_orig_mod."): a for name, a in held[case].items()}
        close(given, held["plain"])


def test_a_group_of_one_leaves_a_process_alone(found):
    for held, batches in zip(found, codebooks.DRAWN, strict=True):
        exact(
            dict(held["alone"]),
            dict(codebooks.trained(codebooks.layer_of({}), batches)),
        )


@pytest.mark.parametrize("broadcast", [True, False])
def test_data_parallel_training_is_that_of_one_process(found, broadcast):
    first, second = (dict(held[f"parallel, broadcast {broadcast}"]) for held in found)
    exact(first, second)
    # A gradient there is the mean over two processes of those of their sums.
    model = codebooks.Autoencoder()
    codebooks.descended(model, together(codebooks.DRAWN), share=0.5)
    close(first, model.state_dict())


@pytest.mark.parametrize("group", ["all", 0, torch.ones(2)])
def test_a_group_that_is_none_is_named(group):
    with pytest.raises(TypeError, match=r"^process_group must be None or a torch\."):
        dt.VectorQuantizer(codebooks.C, decay=0.9, process_group=group)
