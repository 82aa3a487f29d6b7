"""The command group, and how its errors end."""

from typing import Any

import click

from gbprewrite.errors import GbprewriteError


class Program(click.Group):
    """A group that turns every GbprewriteError into one paragraph and its exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except GbprewriteError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_status)
