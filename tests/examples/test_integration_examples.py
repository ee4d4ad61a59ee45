"""The examples with other libraries run offline, on little data here, and print their tables."""

import importlib

import pytest

pytestmark = pytest.mark.in_turns

SMALL = {
    "finetuned_transformer": (
        (64, 2),
        ["of known words", "of foreign words", "weights in the posterior", "lack 'input_ids'"],
    ),
    "token_classification": ((32, 2), ["NLL of a token", "Categorical(ignore_index=-100)"]),
    "timm_last_layer": ((48, 1), ["The last layer is 'fc'", "noisier", "stars", "classifier"]),
    "lightning_test": ((2,), ["ECE", "Call target.long()"]),
}


@pytest.mark.filterwarnings("ignore")  # of the other libraries
@pytest.mark.parametrize("name", SMALL)
def test_an_example_prints_its_table_and_one_mistake(name, capsys, tmp_path):
    arguments, wanted = SMALL[name]
    importlib.import_module(name).main(*arguments, folder=tmp_path)
    assert [path.name for path in tmp_path.glob("*")] == [f"{name}.png"]
    shown = capsys.readouterr().out
    assert all(text in shown for text in [*wanted, "network", "Laplace"]) and "nan" not in shown
