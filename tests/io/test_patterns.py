"""Patterns of module names: they match what `re` matches, in bounded time, and refuse what they do not understand."""

import re
import time
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np.io._patterns import LONGEST_NAME, Pattern

PIECES = ["a", "b", r"\.", ".", ".*", "a*", "a+", "b?", "(a|b.)", "(?:", "(", "|", ")", "[ab]", "[^a]", "[a-c.]", "^", "$"]
PIECES += [r"[\d]", r"\b", r"\d", r"\w+", r"\s", "a{1,2}", "a{2}", "a{1,}", "?", ".*?", r"\-", "_", "1"]

patterns = st.lists(st.sampled_from(PIECES), max_size=7).map("".join)
names = st.text("ab.1_", max_size=7)


@given(pattern=patterns, name=names)
def test_a_pattern_matches_what_re_matches(pattern, name):
    try:
        ours = Pattern(pattern)
    except ValueError:
        return
    assert ours.matches(name) == bool(re.fullmatch(pattern, name))


@given(pattern=patterns, name=names)
def test_the_end_of_a_name_is_matched_as_in_peft(pattern, name):
    try:
        ours = Pattern(pattern)
    except ValueError:
        return
    assert ours.matches_end(name) == bool(re.match(rf"(.*\.)?({pattern})$", name))


CONSTRUCTS = r"""
    a aa ab|b a| (b|-)a a(?:b|) (a|ab)(b|) . .a a.* .+b .*aa [ab]aa .*?ab a* a+ a? a*b a+b+ (ab)?a a{2} a{1,2}b a{2,2}
    a{1,}b a{0,} a{0,2} a{100} b{0} ^ $ ^a$ a$b a^ (^|a)b \ba a\b \b a\b- a\bb -\b. \b\w\b \d \w \s \w+\. \. \- [ab] [^ab]
    [a-] [a-]b [-a] []a] [^]a] [.-1] [b-c]a [a^] [\d_] [^\w] [\-a] [+\--/] [a\]] [a-b]+
"""
SHORT_NAMES = ["".join(name) for length in range(3) for name in product("ab.-_1\n ]^", repeat=length)]
SHORT_NAMES += ["".join(name) for length in range(3, 6) for name in product("ab", repeat=length)] + ["a" * 25, "a" * 100]


@pytest.mark.parametrize("pattern", [*CONSTRUCTS.split(), "", "(" * 20 + "a" + ")" * 20, "(a)" * 25, "(a?)" * 25])
def test_every_construct_matches_the_short_names_that_re_matches(pattern):
    ours, start, end = Pattern(pattern), re.compile(pattern), re.compile(rf"((?s:.*)\.)?({pattern})\Z")
    assert [name for name in SHORT_NAMES if ours.matches(name)] == [name for name in SHORT_NAMES if start.fullmatch(name)]
    assert [name for name in SHORT_NAMES if ours.matches_end(name)] == [name for name in SHORT_NAMES if end.match(name)]


WRITTEN = [
    ("q_proj|v_proj", "q_proj", True),
    (r".*\.(q|k|v)_proj", "model.layers.0.self_attn.k_proj", True),
    (r".*\.(q|k|v)_proj", "model.layers.0.self_attn.o_proj", False),
    (r"model\.layers\.\d+\.mlp\.(gate|up|down)_proj", "model.layers.12.mlp.up_proj", True),
    (r"model\.layers\.\d+\.mlp\.(gate|up|down)_proj", "model.layers.x.mlp.up_proj", False),
    (r"^model\.layers\.(1|2)\..*$", "model.layers.2.q", True),
    (r"^model\.layers\.(1|2)\..*$", "model.layers.12.q", False),
    (r".*layers\.[0-9]{1,2}\..*", "model.layers.99.q", True),
    (r".*layers\.+q\-?", "model.layers..q", True),
    (r".*layers\.+q\-?", "model.layersxq", False),
    (
        r"(?:.*?(?:vision|image).*?(?:layers|blocks).*?(?:self_attn|attn).*?(?:q_proj|k_proj).*?)"
        r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|mlp)\.(?:(?:q_proj|k_proj|v_proj|o_proj)))",
        "model.layers.31.self_attn.o_proj",
        True,
    ),
]


@pytest.mark.parametrize(("pattern", "name", "matches"), WRITTEN)
def test_patterns_that_people_write(pattern, name, matches):
    assert Pattern(pattern).matches(name) == matches == bool(re.fullmatch(pattern, name))


REFUSED = {
    "(a*)*": "repetition of '(a*)*', which is not a single character",
    "(ab)+": "repetition of '(ab)+', which is not a single character",
    "a**b": "repetition of a repetition or of a position, at position 0",
    "a**": "repetition of a repetition or of a position, at position 0",
    "b^*": "repetition of a repetition or of a position, at position 1",
    r"\b?": "repetition of a repetition or of a position, at position 0",
    "*a": "nothing to repeat at position 0",
    "(?=a)": "the group '(?='",
    "(?P<x>a)": "the group '(?P'",
    r"(a)\1": r"the escape '\1'",
    r"\Z": r"the escape '\Z'",
    "(a": "missing )",
    "a)": "unbalanced parenthesis at position 1",
    "[a": "the pattern ends too early",
    "[]": "the pattern ends too early",
    "a\\": "the pattern ends too early",
    "a{1,500}": "repetition '{1,500}'; the largest number is 100",
    "a{101}": "repetition '{101}'; the largest number is 100",
    "a{3,1}": "repetition '{3,1}'; the largest number is 100",
    "(" * 21 + ")" * 21: "more than 20 nested groups",
    "(a)" * 5 + "(" * 21 + ")" * 21: "more than 20 nested groups",
    "a" * 2001: "patterns have at most 2000 characters, got 2001",
}


@pytest.mark.parametrize("pattern", REFUSED)
def test_what_is_not_supported_is_named(pattern):
    with pytest.raises(ValueError, match=f"^{re.escape(REFUSED[pattern])}$"):
        Pattern(pattern)


@pytest.mark.parametrize("pattern", [".*a" * 600 + "b", "a?" * 900 + "a" * 200, "(a|a)" * 400, ".*a|" * 400 + "b"])
def test_no_pattern_takes_long(pattern):
    start = time.process_time()
    assert not Pattern(pattern).matches("a" * (LONGEST_NAME - 1) + ".")
    assert time.process_time() - start < 2


def test_no_name_is_longer():
    assert Pattern(".*").matches("a" * 1000)
    assert Pattern(".*").matches("a" * 1001) is False
