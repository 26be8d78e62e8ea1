"""The library's errors are caught by their own base and by the built-in kind that fits."""

import pickle

import pytest

from setwise import errors
from setwise.errors import SetwiseError, UnknownName, choose

KINDS = {
    "InvalidInput": ValueError,
    "UnknownName": ValueError,
    "MissingFile": FileNotFoundError,
    "DataError": ValueError,
    "RunError": RuntimeError,
    "Stopped": RuntimeError,
}
NAMES = ["cifar10-lt", "cifar100-lt", "digits-lt"]


def test_every_kind_is_listed_here():
    kinds = {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}
    assert kinds == {*KINDS, "SetwiseError"}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_also_the_built_in_that_fits(name):
    kind = getattr(errors, name)
    assert issubclass(kind, SetwiseError)
    assert issubclass(kind, KINDS[name])
    assert str(kind("a sentence")) == "a sentence"
    assert str(pickle.loads(pickle.dumps(kind("a sentence")))) == "a sentence"  # as worker processes send it


def test_a_known_name_gives_its_entry_or_itself():
    assert choose("a", {"a": 1, "b": 2}, "letter") == 1
    assert choose("digits-lt", NAMES, "data set") == "digits-lt"


def test_an_unknown_name_lists_the_choices_nearest_first():
    with pytest.raises(UnknownName) as caught:
        choose("cifar100lt", NAMES, "data set")
    assert str(caught.value) == (
        "There is no data set 'cifar100lt'; did you mean 'cifar100-lt'? Choices: cifar100-lt, cifar10-lt, digits-lt."
    )


def test_a_name_like_no_other_lists_the_choices_alone():
    with pytest.raises(UnknownName, match=r"'zzz'\. Choices: cifar10-lt, cifar100-lt, digits-lt\.$"):
        choose("zzz", NAMES, "data set")
