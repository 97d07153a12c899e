"""`galley completion`: scripts that complete commands and flags in bash, zsh and fish.

A script holds all names, so that completing starts no Python. It is made from the parsers.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from galley.cli.parser import CommandParser
from galley.errors import ConfigError

SHELLS = ("bash", "zsh", "fish")
#: Where each shell looks for the script by itself.
_HELP = """\
bash:  galley completion bash > ~/.local/share/bash-completion/completions/galley
zsh:   galley completion zsh > ~/.zfunc/_galley   # with `fpath+=~/.zfunc` before compinit
fish:  galley completion fish > ~/.config/fish/completions/galley.fish
For this shell only:  source <(galley completion bash)"""


@dataclass(frozen=True)
class Option:
    """A flag as a shell needs it: its spellings, the values it takes, one line of help."""

    spellings: tuple[str, ...]
    choices: tuple[str, ...]
    takes_value: bool
    help: str


@dataclass(frozen=True)
class Command:
    """A command: one line of help, words that may follow it, its flags."""

    help: str
    words: tuple[str, ...]
    options: tuple[Option, ...]


def parser() -> CommandParser:
    return CommandParser(
        "completion",
        "Print a script that completes commands, flags and their values in a shell.",
        [],
        positionals=(("SHELL", ", ".join(SHELLS)),),
        examples=tuple(_HELP.splitlines()),
    )


def main(argv: list[str]) -> int:
    words = parser().parse(argv).positionals
    if not words or words[0] not in SHELLS:
        raise ConfigError(f"galley completion needs a shell: one of {', '.join(SHELLS)}.")
    print({"bash": bash, "zsh": zsh, "fish": fish}[words[0]](commands()))
    return 0


def commands() -> dict[str, Command]:
    """All commands by name."""
    from galley.cli.main import COMMANDS

    found = {}
    for name, (module_name, text) in COMMANDS.items():
        module = importlib.import_module(module_name)
        make = getattr(module, "parser", None)
        options = options_of(make()) if make is not None else ()
        found[name] = Command(text, words_of(name), options)
    return found


def words_of(command: str) -> tuple[str, ...]:
    """The completions after a command that has commands of its own."""
    from galley.cli import cache
    from galley.cli.bench import main as bench

    return {"bench": tuple(bench.COMMANDS), "cache": cache.ACTIONS, "completion": SHELLS}.get(
        command, ()
    )


def options_of(of: CommandParser) -> tuple[Option, ...]:
    options = []
    for flag in of.flags.values():
        spellings = list(flag.spellings)
        if flag.kind == "bool":
            spellings.append("--no-" + flag.option[2:])
        choices = tuple(str(c) for c in flag.choices)
        options.append(
            Option(tuple(spellings), choices, flag.kind not in ("bool", "switch"), line(flag.help))
        )
    options.append(Option(("--help", "-h"), (), False, "Show help; --help=FLAG explains one flag."))
    return tuple(options)


def line(text: str) -> str:
    """The first sentence, without what shells would act on."""
    first = text.split(". ")[0].split(": ")[0].rstrip(".")
    return "".join(c for c in first if c not in "'\"[]`$\\:")[:80]


def bash(table: dict[str, Command]) -> str:
    cases, values = [], []
    for name, command in table.items():
        flags = " ".join(s for o in command.options for s in o.spellings)
        words = " ".join(command.words)
        cases.append(f'        {name}) flags="{flags}"; words="{words}" ;;')
        for option in command.options:
            if option.choices:
                spelled = "|".join(f"{name}:{s}" for s in option.spellings)
                values.append(f'        {spelled}) words="{" ".join(option.choices)}" ;;')
    return "\n".join(
        [
            "# bash completion of galley; made by `galley completion bash`",
            "_galley() {",
            '    local cur="${COMP_WORDS[COMP_CWORD]}" prev="${COMP_WORDS[COMP_CWORD-1]}"',
            '    local command="${COMP_WORDS[1]}" flags="" words=""',
            "    COMPREPLY=()",
            "    if [[ $COMP_CWORD -eq 1 ]]; then",
            f'        COMPREPLY=($(compgen -W "{" ".join(table)} --help --version" -- "$cur"))',
            "        return",
            "    fi",
            '    case "$command:$prev" in',
            *values,
            "    esac",
            '    if [[ -n $words ]]; then COMPREPLY=($(compgen -W "$words" -- "$cur")); return; fi',
            '    case "$command" in',
            *cases,
            "    esac",
            "    if [[ $cur == -* ]]; then",
            '        COMPREPLY=($(compgen -W "$flags" -- "$cur"))',
            "    elif [[ -n $words && $COMP_CWORD -eq 2 ]]; then",
            '        COMPREPLY=($(compgen -W "$words" -- "$cur"))',
            "    else",
            '        COMPREPLY=($(compgen -f -- "$cur"))',
            "    fi",
            "}",
            "complete -o filenames -F _galley galley",
        ]
    )


def zsh(table: dict[str, Command]) -> str:
    lines = [
        "#compdef galley",
        "# zsh completion of galley; made by `galley completion zsh`",
        "_galley() {",
        "  local -a commands",
        "  commands=(",
        *(f"    '{name}:{line(command.help)}'" for name, command in table.items()),
        "  )",
        "  if (( CURRENT == 2 )); then",
        "    _describe 'command' commands",
        "    return",
        "  fi",
        '  local command="$words[2]"',
        "  shift words; (( CURRENT-- ))",
        '  case "$command" in',
    ]
    for name, command in table.items():
        lines += [f"    {name})", "      _arguments \\"]
        for option in command.options:
            value = ""
            if option.takes_value:
                values = f"({' '.join(option.choices)})" if option.choices else "_files"
                value = f": :{values}"
            lines += [f"        '{s}[{option.help}]{value}' \\" for s in option.spellings]
        first = f"({' '.join(command.words)})" if command.words else "_files"
        lines += [f"        '1: :{first}' '*: :_files' ;;"]
    return "\n".join([*lines, "  esac", "}", 'compdef _galley galley 2>/dev/null || _galley "$@"'])


def fish(table: dict[str, Command]) -> str:
    names = " ".join(table)
    lines = [
        "# fish completion of galley; made by `galley completion fish`",
        "complete -c galley -e",
        f"set -l commands {names}",
    ]
    alone = '-n "not __fish_seen_subcommand_from $commands"'
    for name, command in table.items():
        lines.append(f"complete -c galley -f {alone} -a {name} -d '{line(command.help)}'")
        chosen = f'-n "__fish_seen_subcommand_from {name}"'
        if command.words:
            lines.append(f"complete -c galley -f {chosen} -a '{' '.join(command.words)}'")
        for option in command.options:
            spelled = " ".join(
                f"-l {s[2:]}"
                if s.startswith("--")
                else f"-s {s[1:]}"
                if len(s) == 2
                else f"-o {s[1:]}"
                for s in option.spellings
            )
            value = " -r" if option.takes_value else ""
            if option.choices:
                value += f" -f -a '{' '.join(option.choices)}'"
            lines.append(f"complete -c galley {chosen} {spelled}{value} -d '{option.help}'")
    return "\n".join(lines)
