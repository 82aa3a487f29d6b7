"""The command group, and how its errors end."""

from typing import Any

import click

from gbprewrite.cli import printing, process
from gbprewrite.errors import GbprewriteError, OutputError


class Script(click.Command):
    """A command that turns every GbprewriteError into one paragraph and its exit status."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run it in a process whose streams may be closed or full, and that signals may end."""
        process.prepare_streams()
        try:
            with process.ending_in_order():
                super().main(*args, **options)
        except SystemExit as ended:
            self._flush(ended)
        except OSError as error:
            named = OutputError(f"{error.filename}: {error.strerror}.") if error.filename else None
            self._fail(named or printing.unwritable(error))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command itself."""
        try:
            return super().invoke(ctx)
        except GbprewriteError as error:
            printing.complain(error)
            ctx.exit(error.exit_status)
        except MemoryError:
            printing.complain("there is not enough memory for this. Give less at once, or a smaller model.")
            ctx.exit(1)

    def _flush(self, ended: SystemExit) -> None:
        try:
            process.flush()
        except BrokenPipeError:
            process.drop()
            raise SystemExit(ended.code or 1) from None
        except OutputError as error:
            self._fail(error)
        raise ended

    def _fail(self, error: GbprewriteError) -> None:
        printing.complain(error)
        process.drop()
        raise SystemExit(error.exit_status) from None


class Program(Script, click.Group):
    """A group of such commands."""
