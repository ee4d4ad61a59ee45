"""The examples with other libraries run offline, on little data here, and print their tables."""

import importlib

import pytest

SMALL = {
    "finetuned_transformer": ((64, 2), ["of known words", "of foreign words", "weights in the posterior"]),
    "token_classification": ((32, 2), ["NLL of a token"]),
    "timm_last_layer": ((48, 1), ["The last layer is 'fc'", "noisier", "stars"]),
    "lightning_test": ((2,), ["ECE"]),
}


@pytest.mark.filterwarnings("ignore")  # of the other libraries
@pytest.mark.parametrize("name", SMALL)
def test_an_example_prints_its_table(name, capsys):
    arguments, wanted = SMALL[name]
    importlib.import_module(name).main(*arguments)
    shown = capsys.readouterr().out
    assert all(text in shown for text in [*wanted, "network", "Laplace"]) and "nan" not in shown
