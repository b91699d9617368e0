"""Argument checks: each returns a valid value, and rejects any other with the name of the argument and the value."""

import itertools
import re
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lora_np import ArgumentError, ArgumentNullError, ArgumentOutOfRangeError
from lora_np import _validation as check

NOT_NUMBERS = [True, np.False_, np.ma.masked, None, "1", b"1", [1.0], np.ones(1), object(), 1j, {}, [[1.0], [2.0, 3.0]]]
NOT_INTEGERS = [None, 1.0, "1", True, np.True_, np.float64(1), [1], np.ones(1, int), object(), 1j]
NOT_FINITE = [np.nan, np.inf, -np.inf, np.float32(np.inf)]

integers = st.integers(-(2**70), 2**70)
finite = st.floats(allow_nan=False, allow_infinity=False)


def rejected(error, function, *arguments, **keywords):
    """The message of the error that the check must raise."""
    with pytest.raises(error, match=r"\Aargument ") as raised:
        function("argument", *arguments, **keywords)
    return str(raised.value)


# ---------------------------------------------------------------- scalars


@pytest.mark.parametrize("value", [0, "", [], np.zeros(0), object()], ids=repr)
def test_not_none_accepts_everything_else(value):
    check.not_none("argument", value)


def test_not_none_rejects_none():
    assert rejected(ArgumentNullError, check.not_none, None) == "argument must not be None"


@given(value=integers)
def test_integer_accepts_integers(value):
    assert check.integer("argument", value) == value


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64, np.uint64])
def test_integer_accepts_every_integer_type_and_returns_an_int(kind):
    found = check.integer("argument", kind(7))
    assert found == 7
    assert type(found) is int


@pytest.mark.parametrize("function", [check.integer, check.positive_int])
@pytest.mark.parametrize("value", NOT_INTEGERS, ids=repr)
def test_integer_and_positive_int_reject_other_types(function, value):
    assert repr(value) in rejected(ArgumentError, function, value)


@given(value=integers)
def test_positive_int_accepts_exactly_the_positive_integers(value):
    if value >= 1:
        assert check.positive_int("argument", value) == value
    else:
        assert rejected(ArgumentOutOfRangeError, check.positive_int, value) == f"argument must be at least 1, got {value}"


@given(value=finite)
def test_finite_float_accepts_finite_numbers(value):
    assert check.finite_float("argument", value) == value


@pytest.mark.parametrize("value", [2, np.float32(2), np.int8(2), np.array(2.0)], ids=repr)
def test_finite_float_returns_a_float(value):
    assert type(check.finite_float("argument", value)) is float


@pytest.mark.parametrize("function", [check.finite_float, check.non_negative_float, check.fraction])
@pytest.mark.parametrize("value", NOT_NUMBERS, ids=repr)
def test_checks_of_floats_reject_other_types(function, value):
    assert "must be a real number" in rejected(ArgumentError, function, value)


@pytest.mark.parametrize("function", [check.finite_float, check.non_negative_float, check.fraction])
@pytest.mark.parametrize("value", NOT_FINITE, ids=repr)
def test_checks_of_floats_reject_infinity_and_nan(function, value):
    assert rejected(ArgumentOutOfRangeError, function, value) == f"argument must be finite, got {float(value)}"


@given(value=finite)
def test_non_negative_float_accepts_exactly_the_non_negative_numbers(value):
    if value >= 0:
        assert check.non_negative_float("argument", value) == value
    else:
        assert str(value) in rejected(ArgumentOutOfRangeError, check.non_negative_float, value)


@given(value=st.floats(-2, 2))
def test_fraction_accepts_exactly_the_half_open_unit_interval(value):
    if 0 <= value < 1:
        assert check.fraction("argument", value) == value
    else:
        assert "must lie in [0, 1)" in rejected(ArgumentOutOfRangeError, check.fraction, value)


@given(alpha=finite, rank=st.integers(1, 100))
def test_a_negative_alpha_means_the_rank(alpha, rank):
    assert check.resolved_alpha(alpha, rank) == (rank if alpha < 0 else alpha)


@pytest.mark.parametrize("alpha", [*NOT_FINITE, None, "1"], ids=repr)
def test_an_alpha_must_be_a_finite_number(alpha):
    with pytest.raises(ArgumentError, match="alpha must be"):
        check.resolved_alpha(alpha, 3)


@pytest.mark.parametrize("value", ["a", "bc"])
def test_one_of_accepts_the_choices(value):
    assert check.one_of("argument", value, ("a", "bc")) == value


@pytest.mark.parametrize("value", ["", "b", "A", None, 1, ["a"], {}], ids=repr)
def test_one_of_rejects_everything_else(value):
    message = rejected(ArgumentError, check.one_of, value, ("a", "bc"))
    assert message == f"argument must be one of 'a', 'bc', got {value!r}"


# ---------------------------------------------------------------- ranks


@given(rank=st.integers(-2, 12), input_size=st.integers(1, 9), output_size=st.integers(1, 9))
def test_rank_within_accepts_exactly_the_possible_ranks(rank, input_size, output_size):
    if 1 <= rank <= min(input_size, output_size):
        assert check.rank_within(rank, input_size, output_size) == rank
    else:
        with pytest.raises(ArgumentOutOfRangeError, match=rf"\Arank must be at (least|most) .*got {rank}\Z"):
            check.rank_within(rank, input_size, output_size)


def test_rank_within_reports_limit_and_value():
    with pytest.raises(ArgumentError, match=re.escape("r must be at most min(input_size, output_size) = 3, got 4")):
        check.rank_within(4, 3, 5, "r")


@given(ranks=st.sets(st.integers(1, 20), min_size=1), kind=st.sampled_from([list, tuple, iter, np.array]))
def test_ascending_ranks_accepts_any_iterable(ranks, kind):
    ordered = sorted(ranks)
    found = check.ascending_ranks("argument", kind(ordered), 20)
    assert found == tuple(ordered)
    assert {type(rank) for rank in found} == {int}


@given(ranks=st.lists(st.integers(1, 5), min_size=2))
def test_ascending_ranks_rejects_other_orders(ranks):
    assume(any(second <= first for first, second in itertools.pairwise(ranks)))
    assert str(tuple(ranks)) in rejected(ArgumentError, check.ascending_ranks, ranks, 5)


@given(ranks=st.sets(st.integers(1, 20), min_size=1), max_rank=st.integers(1, 20))
def test_ascending_ranks_rejects_ranks_above_the_maximum(ranks, max_rank):
    ordered = sorted(ranks)
    if ordered[-1] <= max_rank:
        assert check.ascending_ranks("argument", ordered, max_rank) == tuple(ordered)
    else:
        assert f"max_rank = {max_rank}" in rejected(ArgumentOutOfRangeError, check.ascending_ranks, ordered, max_rank)


@pytest.mark.parametrize(
    ("ranks", "error", "words"),
    [
        (None, ArgumentNullError, "must not be None"),
        ([], ArgumentError, "must contain at least one rank, got none"),
        ("12", ArgumentError, "sequence of integers, got '12'"),
        (3, ArgumentError, "sequence of integers, got 3"),
    ],
    ids=repr,
)
def test_ascending_ranks_rejects_everything_else(ranks, error, words):
    assert words in rejected(error, check.ascending_ranks, ranks, 5)


@pytest.mark.parametrize("ranks", [[0, 1], [1, 2.0], [True], [1, None]], ids=repr)
def test_ascending_ranks_rejects_elements_that_are_not_positive_integers(ranks):
    with pytest.raises(ArgumentError, match="each of argument must be"):
        check.ascending_ranks("argument", ranks, 5)


# ---------------------------------------------------------------- dtypes, generators


@pytest.mark.parametrize("dtype", [np.float32, np.float64, "float32", "float64", "f8", float, np.dtype("f4")], ids=str)
def test_float_dtype_accepts_both_precisions_in_every_spelling(dtype):
    assert check.float_dtype(dtype) == np.dtype(dtype)


@pytest.mark.parametrize("dtype", [np.float16, int, complex, object, "nonsense", 3, ">f8", [], {}], ids=str)
def test_float_dtype_rejects_all_others(dtype):
    with pytest.raises(ArgumentError, match="dtype must be float32 or float64, got"):
        check.float_dtype(dtype)


def test_a_seed_creates_a_generator():
    assert check.generator(3).random() == np.random.default_rng(3).random()


def test_a_generator_is_returned_unchanged():
    random = np.random.default_rng(0)
    assert check.generator(random) is random


def test_none_means_unpredictable_entropy():
    assert check.generator(None).random() != check.generator(None).random()


@pytest.mark.parametrize("rng", [-1, 1.5, "seed", object()], ids=repr)
def test_generator_rejects_everything_else(rng):
    with pytest.raises(ArgumentError, match="rng must be a seed"):
        check.generator(rng)


# ---------------------------------------------------------------- arrays

reals = hnp.arrays(
    st.sampled_from([np.bool_, np.int16, np.uint8, np.float32, np.float64]), hnp.array_shapes(min_dims=0, max_side=3)
)


@given(value=reals)
def test_real_array_returns_a_real_array_unchanged(value):
    assert check.real_array("argument", value) is value


@given(value=reals.filter(lambda a: a.dtype != np.float64), copy=st.booleans())
def test_real_array_casts(value, copy):
    found = check.real_array("argument", value, np.float64, copy=copy)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, value)


@given(value=reals)
def test_a_copy_shares_no_memory_and_is_row_major(value):
    found = check.real_array("argument", value.T, copy=True)
    assert not np.may_share_memory(found, value) or not value.size
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, value.T)


@pytest.mark.parametrize("value", [3, [1, 2], [[1.5], [2.5]], ()], ids=repr)
def test_real_array_accepts_numbers_and_lists(value):
    np.testing.assert_array_equal(check.real_array("argument", value), value)


@pytest.mark.parametrize("value", ["1", [1j], [object()], ["a"], [1, None], {}, np.datetime64("2020-01-01")], ids=repr)
def test_real_array_rejects_other_kinds(value):
    assert "real numbers, got dtype" in rejected(ArgumentError, check.real_array, value)


def test_real_array_rejects_ragged_lists():
    assert "real numbers" in rejected(ArgumentError, check.real_array, [[1.0], [2.0, 3.0]])


def test_real_array_rejects_none():
    assert rejected(ArgumentNullError, check.real_array, None) == "argument must not be None"


@given(shape=hnp.array_shapes(min_dims=0, max_dims=3), size=st.integers(1, 5))
def test_last_axis_accepts_exactly_the_given_size(shape, size):
    array = np.zeros(shape)
    if shape[-1:] == (size,):
        check.last_axis("argument", array, size)
    else:
        assert rejected(ArgumentError, check.last_axis, array, size) == (
            f"argument must have shape (..., {size}), got {shape}"
        )


@given(
    shape=hnp.array_shapes(min_dims=0, max_dims=2, max_side=2), other=hnp.array_shapes(min_dims=0, max_dims=2, max_side=2)
)
def test_same_shape_accepts_exactly_the_given_shape(shape, other):
    if shape == other:
        check.same_shape("argument", np.zeros(shape), other)
    else:
        message = rejected(ArgumentError, check.same_shape, np.zeros(shape), other)
        assert message == f"argument must have shape {other}, got {shape}"


@pytest.mark.parametrize("shape", [(1,), (10**4, 10**4), ()], ids=str)
def test_array_shape_accepts_possible_shapes(shape):
    check.array_shape("argument", *shape)


@pytest.mark.parametrize("shape", [(2**60,), (10**10, 10**10)], ids=str)
def test_array_shape_rejects_impossible_shapes(shape):
    with pytest.raises(ArgumentOutOfRangeError) as raised:
        check.array_shape("argument", *shape)
    assert str(raised.value) == f"argument: an array of shape {shape} is too large"


# ---------------------------------------------------------------- arguments that are not numbers


@pytest.mark.parametrize(
    ("function", "valid", "message"),
    [
        (check.text, "a", "argument must be a string, got "),
        (check.mapping, {}, "argument must be a mapping, got "),
        (check.function, len, "argument must be callable, got "),
        (check.file_path, "a", "argument must be a path, got "),
        (lambda name, value: check.instance(name, value, float, "a float"), 1.0, "argument must be a float, got "),
        (lambda name, value: check.sequence(name, value, "names"), ["a"], "argument must be a sequence of names, got "),
    ],
    ids=["text", "mapping", "function", "path", "instance", "sequence"],
)
def test_other_kinds_are_rejected(function, valid, message):
    function("argument", valid)
    assert rejected(ArgumentError, function, 3) == f"{message}3"
    assert rejected(ArgumentNullError, function, None) == "argument must not be None"


@pytest.mark.parametrize("value", ["text", b"text", np.array(1.0)], ids=repr)
def test_a_sequence_is_not_a_string_and_not_a_number(value):
    assert "must be a sequence of names" in rejected(ArgumentError, check.sequence, value, "names")


def test_a_sequence_may_be_a_generator():
    assert check.sequence("argument", (letter for letter in "ab"), "letters") == ("a", "b")


def test_paths_are_strings_and_valid_unicode():
    assert check.file_path("argument", b"a") == check.file_path("argument", Path("a")) == "a"
    assert "not valid Unicode" in rejected(ArgumentError, check.file_path, "\ud800")


@pytest.mark.parametrize("value", [np.ones(2), np.ma.masked_all(3)], ids=["array", "masked"])
def test_flags_need_a_truth_value(value):
    assert check.flag("argument", 1) is check.flag("argument", np.True_) is True
    assert "must be True or False" in rejected(ArgumentError, check.flag, value)


@pytest.mark.parametrize(
    "value", [np.ma.masked_all(3), np.ma.ones(3), np.ma.masked], ids=["masked", "unmasked", "constant"]
)
def test_masked_arrays_are_rejected_because_their_masks_would_be_lost(value):
    assert "must not be a masked array: fill in" in rejected(ArgumentError, check.real_array, value)
