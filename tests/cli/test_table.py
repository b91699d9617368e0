import pytest

from lora_np.terminal.table import table


def test_text_is_flush_left_and_numbers_are_flush_right():
    assert table(["kind", "array", "error"], [["a", "weight", "1"], ["long", "b", "12.5"]], left=2).splitlines() == [
        "kind  array   error",
        "----  ------  -----",
        "a     weight      1",
        "long  b        12.5",
    ]


def test_one_column_of_text_by_default():
    assert table(["a", "b"], [["c", "1"], ["dd", "10"]]).splitlines()[2:] == ["c    1", "dd  10"]


def test_no_line_ends_in_blanks():
    assert table(["a", ""], [["b", ""]]).splitlines() == ["a", "-", "b"]


def test_a_table_may_have_no_rows():
    assert table(["a", "b"], []) == "a  b\n-  -"


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="zip"):
        table(["a", "b"], [["c"]])
