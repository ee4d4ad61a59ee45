"""Which weights the helpers choose, against the flattened ``model.parameters()``."""

import pytest
import torch
from torch import nn

from bridge import Laplace, load, save, subnetworks
from tests.bridge.small import INDICES, STRUCTURES, data, fitted, loader, make, network

pytestmark = pytest.mark.usefixtures("x64")


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def test_largest_magnitude_takes_the_largest_and_sorts_their_places():
    chosen = subnetworks.largest_magnitude(network(), 7)
    values = flat(network()).abs()
    others = [i for i in range(43) if i not in chosen.tolist()]
    assert values[chosen].min() >= values[others].max()
    assert chosen.tolist() == sorted(chosen.tolist()) and len(chosen) == 7


def test_largest_variance_is_that_of_a_diagonal_posterior():
    chosen = subnetworks.largest_variance(network(), 6, loader(), prior_precision=2.0, progress=False)
    assert chosen.tolist() == fitted("diag").posterior_variance.topk(6).indices.sort().values.tolist()


def test_random_weights_are_repeated_by_a_generator_and_differ():
    one, two, other = (subnetworks.at_random(network(), 10, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other) and len(set(one.tolist())) == 10
    assert subnetworks.at_random(network(), 43).tolist() == list(range(43))


@pytest.mark.parametrize(
    ("choose", "names", "wanted"),
    [
        (subnetworks.by_module, ["2"], range(25, 43)),
        (subnetworks.by_module, "2", range(25, 43)),
        (subnetworks.by_module, ["?"], range(43)),
        (subnetworks.by_parameter, ["*.bias"], [*range(20, 25), *range(40, 43)]),
        (subnetworks.by_parameter, "0.bias", range(20, 25)),
        (subnetworks.by_parameter, ["2.bias", "0.weight"], [*range(20), *range(40, 43)]),
        (subnetworks.last_layer, None, range(25, 43)),
        (subnetworks.last_layer, "0", range(25)),
    ],
)
def test_weights_of_names_are_their_places(choose, names, wanted):
    assert choose(network(), names).tolist() == list(wanted)


def test_fixed_weights_do_not_count():
    model = network()
    model[0].weight.requires_grad_(False)
    assert subnetworks.by_module(model, ["0"]).tolist() == list(range(5))
    assert subnetworks.largest_magnitude(model, 23).tolist() == list(range(23))


def test_a_mask_is_its_places_and_another_length_is_refused():
    mask = torch.zeros(43, dtype=torch.bool)
    mask[[3, 40]] = True
    assert subnetworks.of_mask(network(), mask).tolist() == [3, 40]
    for wrong in (mask[1:], torch.zeros(43, dtype=torch.bool)):
        with pytest.raises(ValueError, match="one per weight, 43"):
            subnetworks.of_mask(network(), wrong)


@pytest.mark.parametrize("count", [0, 44, 2.0])
@pytest.mark.usefixtures("unchecked_annotations")
def test_counts_that_the_model_does_not_have_are_refused(count):
    with pytest.raises(ValueError, match="count="):
        subnetworks.largest_magnitude(network(), count)


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(ValueError, match=r"'fc' matches no module.*'0', '2'"):
        subnetworks.by_module(network(), "fc")


@pytest.mark.parametrize("structure", ["full", "diag", "lowrank"])
def test_all_weights_of_a_module_one_by_one_are_that_module(structure):
    chosen = subnetworks.by_module(network(), ["2"])
    la = Laplace(
        network(), "classification", "subnetwork", structure, subnetwork_indices=chosen, rank=18, progress=False
    )
    la.options = make(structure).options.__class__(**{**vars(la.options), "tolerance": 0.0})
    la.prior_precision = 2.0
    x = data()[0][:4]
    torch.testing.assert_close(la.fit(loader())(x), fitted(structure, "last_layer")(x), rtol=1e-6, atol=1e-9)


KEPT = [
    ("full", "subnetwork"),
    ("lowrank", "subnetwork"),
    ("diag", ("*.bias",)),
    ("kron", ("0",)),
    ("kron_lowrank", ("2",)),
]


@pytest.mark.parametrize(("structure", "subset"), KEPT, ids=str)
def test_a_posterior_over_some_weights_is_kept(structure, subset, tmp_path):
    la = fitted(structure, subset)
    more = {"subnetwork_indices": INDICES} if subset == "subnetwork" else {}
    how = {"hessian_structure": structure, "rank": la.options.rank, "progress": False, **more}
    x = data()[0][:4]
    save(la, tmp_path / "la.safetensors")
    loaded = load(tmp_path / "la.safetensors", Laplace(network(), "classification", subset, **how))
    stated = Laplace(network(), "classification", subset, **how)
    stated.load_state_dict(la.state_dict())
    for again in (loaded, stated):
        torch.testing.assert_close(again(x), la(x))
        torch.testing.assert_close(again.posterior_variance, la.posterior_variance)
        assert again.subset == la.subset
    other = {"subnetwork_indices": INDICES[:4]} if more else {}
    with pytest.raises(ValueError, match="subnetwork_indices that were saved"):
        load(
            tmp_path / "la.safetensors",
            Laplace(network(), "classification", (other and subset) or ("0.weight",), **how | other),
        )


def test_a_kept_posterior_says_of_which_curvature_it_is(tmp_path):
    la = make("diag", curvature="empirical_fisher").fit(loader())
    save(la, tmp_path / "la.safetensors")
    with pytest.raises(ValueError, match="curvature='empirical_fisher', this Laplace has 'ggn'"):
        load(tmp_path / "la.safetensors", make("diag"))
    again = load(tmp_path / "la.safetensors", make("diag", curvature="empirical_fisher"))
    torch.testing.assert_close(again.posterior_variance, la.posterior_variance)


@pytest.mark.parametrize(
    ("indices", "told"),
    [
        ([0, 43], "at most once, counted from 0"),
        ([0, 0], "at most once"),
        ([-1], "at most once"),
        ([], "one at least"),
        ([0.5], "whole numbers"),
        (torch.ones(43, dtype=torch.bool), "mask.nonzero"),
        (None, "needs subnetwork_indices="),
    ],
    ids=str,
)
def test_places_that_are_not_there_are_refused(indices, told):
    with pytest.raises(ValueError, match=told):
        Laplace(network(), "classification", "subnetwork", "full", subnetwork_indices=indices)


@pytest.mark.parametrize("structure", STRUCTURES[3:])
def test_structures_of_whole_layers_refuse_single_weights(structure):
    with pytest.raises(ValueError, match="'full', 'diag', 'lowrank'"):
        Laplace(network(), "classification", "subnetwork", structure, subnetwork_indices=[0])


def test_patterns_that_name_nothing_to_train_are_refused():
    with pytest.raises(ValueError, match=r"'conv\*' matches no module"):
        Laplace(network(), subset_of_weights=["conv*"])
    with pytest.raises(ValueError, match="no other subset takes them"):
        Laplace(network(), subset_of_weights=["0"], subnetwork_indices=[0])
    model = network()
    model[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"nothing to be uncertain about.*subset_of_weights="):
        Laplace(model, subset_of_weights=["0"])
    assert isinstance(model, nn.Module)
