"""Pictures of where a model looked."""

from typing import TYPE_CHECKING, Any

import click

from gbprewrite.cli.options import given
from gbprewrite.cli.photographs import Said, photograph_options, work

if TYPE_CHECKING:
    from gbprewrite.pictures.explain import ExplainedPhoto, PhotoExplainer


class Explaining:
    """What `explain` asks for: nothing beside the pictures."""

    ending = columns = None

    def __init__(self, model: Any, **options: Any) -> None:
        self.model, self.options = model, options

    def open(self, **options: Any) -> "PhotoExplainer":
        """See `photographs.Job`."""
        from gbprewrite.pictures.explain import PhotoExplainer  # brings matplotlib

        return PhotoExplainer(self.model, **self.options, **options)

    def add(self, explained: "ExplainedPhoto") -> None:
        """See `photographs.Job`."""

    def facts(self) -> dict[str, Any]:
        """See `photographs.Job`."""
        return {}


@click.command()
@photograph_options
@click.pass_context
def explain(ctx: click.Context, /, said: Said, **options: Any) -> None:
    """Show where MODEL looked: write IMAGE.guided.png, the photo beside its maps, and list the top classes.

    An IMAGE is a file, a folder (the images in it), or a quoted pattern such as 'photos/*.jpg'. MODEL is converted in
    memory unless it is a converted one. An image that can't be used is reported, the others go on, and the exit status
    is 1.
    """
    ctx.exit(work(said, Explaining(said.model, **given(options))))
