"""The how-to scripts, on little data here: each prints its table, draws its picture, and shows one mistake."""

import importlib

import matplotlib
import pytest

pytestmark = pytest.mark.in_turns

matplotlib.use("Agg")


@pytest.fixture
def shown(tmp_path, capsys):
    """Runs a script as a user would; gives what ``main`` returns and what was printed."""

    def run(name, *arguments):
        found = importlib.import_module(name).main(*arguments, folder=tmp_path)
        printed = capsys.readouterr().out
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000 and "nan" not in printed
        return found, printed

    return run


def test_calibration_gains_on_a_network_that_is_too_sure(shown):
    found, printed = shown("calibrate_a_classifier", 150, 300)
    assert found["Laplace"]["NLL"] < found["network"]["NLL"] and "Count classes from zero" in printed


@pytest.mark.slow
def test_foreign_images_score_higher_than_digits(shown):
    found, printed = shown("foreign_inputs", 300, 400, 60)
    assert all(area > 0.6 for row in found.values() for area in row.values())
    assert "traced for (batch, 1, 28, 28)" in printed


def test_regression_is_less_sure_where_no_data_are(shown):
    found, printed = shown("regression", 150, 1_000)
    assert found["in the gap", "Laplace"] < 3 and "noise: 0.2" in printed and "one target value per output" in printed


def test_every_way_back_from_disk_gives_the_same_predictions(shown):
    found, printed = shown("save_and_load", 200, 50)
    assert (
        all(difference < 1e-5 for difference in found.values()) and "belongs to a model with other weights" in printed
    )


def test_own_operator_is_carried_once_it_is_registered(shown):
    found, printed = shown("own_operator", 100, 200)
    assert set(found) == {"network", "Laplace"} and "No JAX lowering for examples.soft_clip" in printed


def test_own_loss_is_less_sure_where_no_machines_are(shown):
    found, printed = shown("own_loss", 200, 200)
    assert found["without machines"] > found["with machines"] and "No likelihood for HuberLoss" in printed


def test_core_alone_serves_flax_and_equinox(shown):
    found, printed = shown("flax_and_equinox", 60, 200)
    assert set(found) == {"flax.nnx", "equinox"} and "does not go with hessian_structure" in printed


@pytest.mark.slow
def test_each_pixel_has_its_probabilities(shown):
    found, printed = shown("segmentation", 10, 10)
    assert found["Laplace"] < 1.2 and "use likelihood=nn.CrossEntropyLoss()" in printed


def test_curves_of_labels_begin_alike(shown):
    found, printed = shown("active_learning", 1, 2)
    assert len({rows[0, 0] for rows in found.values()}) == 1 and "Call fit(train_loader) again" in printed


def test_structures_are_compared_by_what_they_keep(shown):
    found, printed = shown("memory_and_speed", 100, 20, ("kron", "diag"))
    assert found["diag"]["kept"] < found["kron"]["kept"] and "GiB are free" in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["calibrate_a_classifier", "active_learning", "segmentation"])
def test_whole_how_to_runs_and_gains(name, shown):
    found, _ = shown(name)
    if name == "calibrate_a_classifier":
        assert found["Laplace"]["NLL"] < 0.8 * found["network"]["NLL"]
    elif name == "segmentation":
        assert found["Laplace"] < found["network"]
    else:
        assert found["mutual information"][:, -1].mean() > found["random"][:, -1].mean()
