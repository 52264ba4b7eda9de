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
