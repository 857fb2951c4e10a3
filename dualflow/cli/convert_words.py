"""The words of `dualflow convert`: inputs, options with several labels, and side columns as options."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import click

LABEL_OPTIONS = ("--participant-label", "--session-label")
"""Options that take several labels in BIDS Apps; some spell them with an underscore."""


class ConvertCommand(click.Command):
    """A command whose label options take several words, as in BIDS Apps, and that keeps unknown options.

    Side columns are options, and only the model says which there are.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat a label option for each of its words, then parse as usual."""
        flags = {name for option in self.get_params(ctx) if getattr(option, "is_flag", False) for name in option.opts}
        return super().parse_args(ctx, list(repeat_label_options(args, flags | {"-h"})))


def repeat_label_options(words: Sequence[str], flags: Iterable[str]) -> Iterator[str]:
    """The words with a label option before each of its labels.

    An option takes all words up to the next option if an input precedes it; otherwise one, because the next word may be
    the input.

    Args:
        words: words of the command line.
        flags: options without a value.
    """
    option, has_input, is_value, no_value = "", False, False, set(flags)
    for position, word in enumerate(words):
        if word == "--":
            yield from words[position:]
            return
        if word.startswith("--") and not is_value:
            name, equals, value = word.partition("=")
            hyphenated = name.replace("_", "-")
            option = hyphenated if hyphenated in LABEL_OPTIONS else ""
            is_value = not equals and name not in no_value
            yield f"{option or name}{equals}{value}"
        elif is_value:
            is_value = False
            option = option if has_input else ""
            yield word
        elif option and not word.startswith("-"):
            yield from (option, word)
        else:
            has_input = has_input or not word.startswith("-")
            yield word


def split_words(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Inputs, and values of the unknown options by name.

    Raises:
        UsageError: an option has no value or is given twice, or there is no input.
    """
    inputs: list[str] = []
    values: dict[str, str] = {}
    remaining = iter(words)
    for word in remaining:
        if not word.startswith("-") or word == "-":
            inputs.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if not equals:
            value = next(remaining, "")
            if not value or value.startswith("--"):
                raise click.UsageError(f"Option '{word}' is unknown, or a side column without its value.")
        if not word.startswith("--"):
            raise click.NoSuchOption(word)
        if name in values:
            raise click.UsageError(f"Option '--{name}' is given twice.")
        values[name] = value
    if not inputs:
        raise click.UsageError("Missing argument 'INPUT...'.")
    return inputs, values


def parse_labels(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Labels from words that may hold several, separated by commas or spaces."""
    return tuple(label for value in values for label in value.replace(",", " ").split())
