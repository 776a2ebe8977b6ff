"""``safelight …``: a composition root. Each command works alone against what the store holds."""

import os
import sys
from typing import Annotated

import typer

from pipeline import cli_keys, cli_models, cli_predict, cli_runs, cli_stages, cli_store, console

app = typer.Typer(
    name="safelight",
    help="Images in, a proven model out, and nothing live is spoiled on the way.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_stages.app)  # without a name: its commands are the program's own
app.add_typer(cli_predict.app)
app.add_typer(cli_runs.app)
app.add_typer(cli_store.app, name="store")
app.add_typer(cli_models.app, name="models")
app.add_typer(cli_keys.app, name="keys")


def main() -> None:
    """Run a command; a person's mistake ends it with one sentence, never with a traceback."""
    # Read when torch is imported: threads that wait must not spin, since store and server share the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Read when pyarrow is imported: an allocator of its own would keep tens of MiB beside those that malloc keeps.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    try:
        status = app(standalone_mode=False)
        sys.stdout.flush()  # a reader that is gone is noticed here, and not when the interpreter ends
    except Exception as error:  # noqa: BLE001 - exit_status raises what is no mistake of a person or the surroundings
        sys.exit(console.exit_status(error))
    if status == console.EXIT_INTERRUPTED:  # typer's way to hand on a Ctrl-C
        status = console.exit_status(KeyboardInterrupt())
    sys.exit(status)


@app.callback()
def options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what happens underneath.")] = False,
) -> None:
    """Options of every command."""
    console.log_to_stderr(verbose=verbose)


if __name__ == "__main__":
    main()
