"""The shape checks of the signatures are on in tests, and can be switched off."""

import jaxtyping
import pytest
import torch

from setwise.nn import BatchFormer
from setwise.nn.streams import tile


def test_shapes_are_checked():
    with pytest.raises(jaxtyping.TypeCheckError):
        BatchFormer(4)(torch.zeros(9, 3, 4))


@pytest.mark.usefixtures("unchecked")
def test_shapes_are_not_checked_where_the_librarys_own_sentence_is_tested():
    with pytest.raises(ValueError, match="BatchFormer relates features"):
        BatchFormer(4)(torch.zeros(9, 3, 4))


def test_a_checked_function_keeps_its_doctest():
    assert tile.__doc__
    assert hasattr(tile, "__wrapped__")
