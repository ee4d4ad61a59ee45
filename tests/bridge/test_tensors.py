import collections
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.tensors import to_jax, to_torch

NARROW = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.uint16,
    torch.int32,
    torch.uint32,
    torch.bool,
    torch.complex64,
]
WIDE = [torch.float64, torch.int64, torch.uint64, torch.complex128]


class Pair(NamedTuple):
    left: object
    right: object


@dataclasses.dataclass(frozen=True)
class Holder:
    tensor: object
    label: str
    derived: object = dataclasses.field(init=False, default=None)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool((a.to(torch.complex128) == b.to(torch.complex128)).all())


@pytest.mark.parametrize("dtype", NARROW + WIDE, ids=str)
@given(shape=st.lists(st.integers(0, 4), max_size=3), transposed=st.booleans())
@settings(max_examples=10, deadline=None)
def test_there_and_back_is_the_identity(dtype, shape, transposed):
    tensor = torch.arange(int(np.prod(shape))).remainder(2).reshape(shape).to(dtype)
    tensor = tensor.mT if transposed and tensor.ndim > 1 else tensor
    with jax.enable_x64(True):
        assert same(to_torch(to_jax(tensor)), tensor)


@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_wide_types_become_narrow_ones_while_x64_is_off(dtype):
    array = to_jax(torch.tensor([0, 1]).to(dtype))
    assert array.dtype.itemsize == dtype.itemsize // 2
    np.testing.assert_array_equal(np.asarray(array), [0, 1])


@pytest.mark.parametrize("value", [torch.tensor([2**40]), torch.tensor([1e300], dtype=torch.float64)], ids=str)
def test_a_value_that_does_not_fit_raises(value):
    with pytest.raises(OverflowError, match="jax_enable_x64"):
        to_jax(value)


def test_infinity_fits_everywhere():
    assert np.isinf(to_jax(torch.tensor([float("inf")], dtype=torch.float64))).all()


def test_aligned_tensors_are_not_copied():
    tensor = torch.zeros(64, 64)
    array = to_jax(tensor)
    if tensor.data_ptr() % 64 == 0:
        assert array.unsafe_buffer_pointer() == tensor.data_ptr()
    assert to_torch(array).data_ptr() == array.unsafe_buffer_pointer()


def test_gradients_are_cut():
    assert not to_torch(to_jax(torch.ones(2, requires_grad=True))).requires_grad


def test_containers_keep_their_type():
    one = torch.ones(2)
    tree = {
        "list": [one, 3],
        "pair": Pair(one, "text"),
        "ordered": collections.OrderedDict(a=one),
        "holder": Holder(one, "label"),
        "none": None,
    }
    arrays = to_jax(tree)
    assert isinstance(arrays["list"][0], jax.Array) and arrays["list"][1] == 3
    assert isinstance(arrays["pair"], Pair) and isinstance(arrays["pair"].left, jax.Array)
    assert isinstance(arrays["ordered"], collections.OrderedDict)
    assert isinstance(arrays["holder"], Holder) and isinstance(arrays["holder"].tensor, jax.Array)
    assert isinstance(tree["holder"].tensor, torch.Tensor)
    assert torch.equal(to_torch(arrays)["holder"].tensor, one)


def test_numpy_arrays_cross_both_ways():
    array = np.arange(3, dtype=np.float32)
    array.flags.writeable = False
    assert isinstance(to_jax(array), jax.Array)
    assert torch.equal(to_torch(array), torch.arange(3.0))


def test_sparse_and_meta_tensors_are_refused():
    with pytest.raises(TypeError, match="to_dense"):
        to_jax(torch.eye(3).to_sparse())
    with pytest.raises(TypeError, match="meta"):
        to_jax(torch.ones(3, device="meta"))


def test_traced_values_are_refused():
    with pytest.raises(TypeError, match=r"outside jax\.jit"):
        jax.jit(to_torch)(jnp.ones(2))
