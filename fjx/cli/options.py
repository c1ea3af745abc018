"""Options of commands, generated from config dataclasses."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from fjx.cli.config_file import read_config_file
from fjx.cli.fields import FieldSpec, field_specs
from fjx.cli.foreign import nearest
from fjx.errors import UserError

Config = TypeVar("Config")

_FIELD_NAME = re.compile(r"(?<![\w.])[a-z]+(?:_[a-z]+)+")
"""Words without an underscore may be plain ones."""
METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class Section(Generic[Config]):
    """The options of one config dataclass."""

    name: str
    """The table in the configuration file, and the prefix of flags that are already taken."""
    config: type[Config]
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Heading in the help to names of fields; the others come last, under ``name``."""
    in_file: bool = True
    """Whether the configuration file may hold these options."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Name of a field to its default in this command, where it is another than the dataclass's."""

    def specs(self) -> tuple[FieldSpec, ...]:
        """The fields of the dataclass; what is said of them names options."""
        specs = field_specs(self.config)
        names = [spec.name for spec in specs]
        return tuple(
            replace(
                spec,
                default=self.defaults.get(spec.name, spec.default),
                help=_with_flags(spec.help, names),
            )
            for spec in specs
        )


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose errors are :class:`UserError`, with options from dataclasses."""

    def __init__(self, **arguments: Any) -> None:
        defaults: dict[str, Any] = {
            "allow_abbrev": False,
            "formatter_class": _HelpFormatter,
            "add_help": False,
        }
        super().__init__(**(defaults | arguments))
        self.flags: list[str] = []
        """All long options, for suggestions."""
        self.commands: Mapping[str, CommandParser] = {}
        """Its subcommands."""
        self.positional: str | None = None
        """The field of a config that a word without an option sets: ``section.field``."""
        self._headings: dict[str, argparse._ArgumentGroup] = {}

    @property
    def option_strings(self) -> Collection[str]:
        """All ways to write an option."""
        return self._option_string_actions

    def add_commands(self, title: str, metavar: str) -> argparse._SubParsersAction[CommandParser]:
        """Begin to add subcommands."""
        commands = self.add_subparsers(title=title, metavar=metavar, required=True)
        self.commands = commands.choices
        return commands

    def take_rest(self, arguments: argparse.Namespace, words: Sequence[str]) -> None:
        """Take what no option has taken: a value of `positional`, or a mistake.

        argparse's own optional positional does not stand behind options before Python 3.12.

        Raises:
            UserError: it is a mistake.
        """
        options = [word for word in words if word.startswith("-")]
        if self.positional is None or len(words) != 1 or options:
            if self.positional is not None and not options:
                raise UserError(f"one model at a time, got {', '.join(words)}")
            flag = (options or words)[0].partition("=")[0]
            near = nearest(flag.replace("_", "-"), self.flags) if options else None
            raise UserError(f"unknown argument {flag}{f'; did you mean {near}?' if near else ''}")
        if self.positional in arguments:
            option = "--" + self.positional.partition(".")[2]
            given = getattr(arguments, self.positional)
            raise UserError(f"{words[0]!r} and {option} {given!r} name the same thing; give one")
        setattr(arguments, self.positional, words[0])

    def error(self, message: str) -> NoReturn:
        """Report a bad argument.

        Raises:
            UserError: always.
        """
        raise UserError(message)

    def add_flag(
        self, group: argparse._ActionsContainer, flag: str, *aliases: str, **arguments: Any
    ) -> None:
        """Add an option to a group of this parser."""
        group.add_argument(*aliases, flag, **arguments)
        self.flags.append(flag)

    def add_general_options(self, config_file: bool = False) -> argparse._ArgumentGroup:
        """Add ``--help`` and, if wanted, ``--config FILE``, and return their group."""
        group = self.add_argument_group("general")
        if config_file:
            self.add_flag(
                group,
                "--config",
                type=Path,
                metavar="FILE",
                help="Read options from this TOML file: tables [engine], [server] and [sampling], "
                "keys as the options with _ for -. The command line wins.",
            )
        self.add_flag(group, "--help", "-h", action="help", help="Show this and exit.")
        return group

    def add_section(self, section: Section[Any]) -> None:
        """Add an option for each field, by group; a flag that is taken gets the section's name, and
        a heading that is there gets more options."""
        specs = {spec.name: spec for spec in section.specs()}
        named = {name for names in section.groups.values() for name in names}
        rest = [name for name in specs if name not in named]
        groups = dict(section.groups)
        if rest:
            groups[section.name] = [*groups.get(section.name, ()), *rest]
        for heading, names in groups.items():
            if heading not in self._headings:
                self._headings[heading] = self.add_argument_group(heading)
            for name in names:
                self._add_field(self._headings[heading], section.name, specs[name])

    def _add_field(self, group: argparse._ActionsContainer, section: str, spec: FieldSpec) -> None:
        flag = flag_of(spec.name)
        if flag in self.flags:
            flag = f"--{section}-{flag[2:]}"
        self.add_flag(
            group,
            flag,
            dest=f"{section}.{spec.name}",
            default=argparse.SUPPRESS,
            help=_help(spec),
            **_action(spec),
        )


def one_of(*names: str) -> dict[str, Any]:
    """What `add_flag` takes for an option that has one of these values."""

    def parse(word: str) -> str:
        if word not in names:
            raise argparse.ArgumentTypeError(f"expected one of {', '.join(names)}; got {word!r}")
        return word

    return {"type": parse, "metavar": _braced(names)}


def _braced(names: Sequence[str]) -> str:
    return "{" + ",".join(names) + "}"


def flag_of(name: str) -> str:
    """The option that sets a field."""
    return "--" + name.replace("_", "-")


def _with_flags(text: str, names: Collection[str]) -> str:
    """A field's docstring, where other fields stand as the options that set them."""

    def shown(word: re.Match[str]) -> str:
        return flag_of(word[0]) if word[0] in names else word[0]

    return _FIELD_NAME.sub(shown, text)


def _action(spec: FieldSpec) -> dict[str, Any]:
    if spec.kind is bool and spec.shape == "scalar":
        return {"action": argparse.BooleanOptionalAction}

    def parse(word: str) -> Any:
        try:
            return spec.parse(word)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    if spec.shape == "scalar":
        metavar = _braced(spec.choices) if spec.choices else METAVARS[spec.kind]
        return {"type": parse, "metavar": metavar}
    metavar = METAVARS[spec.kind]
    if spec.shape == "mapping":
        metavar = f"{METAVARS[spec.key_kind]}={metavar}"
    return {"type": parse, "metavar": metavar, "nargs": "+", "action": "extend"}


def _help(spec: FieldSpec) -> str:
    match spec.default:
        case None | () | "":
            shown = None
        case bool():
            shown = "on" if spec.default else "off"
        case float():
            shown = f"{spec.default:g}"
        case tuple():
            shown = " ".join(
                f"{item:g}" if spec.kind is float else str(item) for item in spec.default
            )
        case dict():
            shown = " ".join(f"{key}={value}" for key, value in spec.default.items()) or None
        case _:
            shown = str(spec.default)
    text = spec.help.replace("%", "%%")
    none = "; or none" if spec.accepts_none else ""
    return text if shown is None else f"{text} [{shown.replace('%', '%%')}{none}]"


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help of 98 columns at most, with the texts in a column of their own."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)
        self._width = min(self._width, 98)

    def _split_lines(self, text: str, width: int) -> list[str]:
        # Names of options, files and models have hyphens, and are to be found and copied.
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction):
            return action.option_strings[0].replace("--", "--[no-]", 1)
        return super()._format_action_invocation(action)


def resolve(
    arguments: argparse.Namespace,
    section: Section[Config],
    file: Mapping[str, Mapping[str, Any]] | None = None,
) -> Config:
    """Build a config: its defaults, over them the file's values, over them the command line's.

    Raises:
        UserError: a value is outside its range, or values contradict each other.
    """
    given: dict[str, Any] = dict(section.defaults)
    given.update(file.get(section.name, {}) if file else {})
    for spec in section.specs():
        key = f"{section.name}.{spec.name}"
        if key in arguments:
            value = getattr(arguments, key)
            match spec.shape:
                case "list":
                    value = tuple(value)
                case "mapping":
                    value = dict(value)
            given[spec.name] = value
    return section.config(**given)


def read_config(
    arguments: argparse.Namespace, sections: Sequence[Section[Any]]
) -> dict[str, dict[str, Any]]:
    """Read the file of ``--config``, where given: table to field to value.

    Raises:
        UserError: the file cannot be read, or holds an unknown key or a value of a wrong type.
    """
    if arguments.config is None:
        return {}
    tables = {section.name: section.specs() for section in sections if section.in_file}
    return read_config_file(arguments.config, tables)
