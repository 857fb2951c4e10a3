"""Words of the convert command: label options, inputs and side columns."""

import click
import pytest

from dualflow.cli.convert_words import parse_labels, repeat_label_options, split_words

FLAGS = ("--dry-run",)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("bids --participant-label 01 02 --out o", "bids --participant-label 01 --participant-label 02 --out o"),
        ("bids --participant_label 01", "bids --participant-label 01"),
        ("--out o bids --session-label=a b", "--out o bids --session-label=a --session-label b"),
        ("--participant-label 01 bids", "--participant-label 01 bids"),
        ("bids --dry-run --out o p", "bids --dry-run --out o p"),
        ("--dry-run bids --session-label a b", "--dry-run bids --session-label a --session-label b"),
        ("bids --participant-label 01 -- 02", "bids --participant-label 01 -- 02"),
    ],
)
def test_label_options_take_several_words_after_an_input(line, expected):
    """As in BIDS Apps; before an input an option takes one word, because the next may be the input."""
    assert " ".join(repeat_label_options(line.split(), FLAGS)) == expected


@pytest.mark.parametrize(
    ("words", "inputs", "values"),
    [
        (["t1.nii.gz", "--age", "71", "--sex", "F"], ["t1.nii.gz"], {"age": "71", "sex": "F"}),
        (["--age=71", "a.nii", "b.nii"], ["a.nii", "b.nii"], {"age": "71"}),
        (["a.nii", "--score", "-1.5"], ["a.nii"], {"score": "-1.5"}),
    ],
)
def test_unknown_options_are_side_columns(words, inputs, values):
    """Their values may follow as a word or behind an equals sign, and may be negative."""
    assert split_words(words) == (inputs, values)


@pytest.mark.parametrize(
    "words", [["--age", "71"], ["a.nii", "--age"], ["a.nii", "--age", "1", "--age=2"], ["a.nii", "-x", "1"]]
)
def test_words_without_input_or_value_are_wrong_usage(words):
    """No input, no value, a repeated column and an unknown short option are errors."""
    with pytest.raises(click.UsageError):
        split_words(words)


def test_labels_are_separated_by_commas_or_spaces():
    """One word may hold several labels."""
    assert parse_labels(None, None, ("01,sub-02", "03 04")) == ("01", "sub-02", "03", "04")
