"""Tab completion for shells: ``hmt-ds --print-completion bash``. Imports no torch."""

import argparse
from collections.abc import Sequence
from typing import Any

from hmt_ds.config.options import path_operand


class PrintCompletion(argparse.Action):
    """Action of argparse for ``--print-completion SHELL``: print a shell's completion script of ``hmt-ds`` and exit."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Print the completion script for a shell (bash, zsh or tcsh) to standard output, and exit with code 0.

        Args:
            parser: the parser of ``hmt-ds`` with its commands.
            namespace: not used.
            values: name of the shell.
            option_string: not used.
        """
        import shtab

        from hmt_ds.config.recipe import Recipe
        from hmt_ds.config.sections import keys

        names = [f"--{name}" for name, field in keys(Recipe) if not hasattr(field.annotation, "__pydantic_fields__")]
        for command in commands_of(parser):
            if command.get_default("takes_overrides"):
                for name in names:
                    command.add_argument(name, metavar="VALUE", help="key of the recipe")
            for action in command._actions:
                if action.type is path_operand:
                    action.complete = shtab.FILE  # type: ignore[attr-defined]
        print(shtab.complete(parser, shell=str(values)))
        parser.exit()


def commands_of(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Return the parsers of all subcommands of an argparse parser."""
    groups = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return [command for group in groups for command in group.choices.values()]
