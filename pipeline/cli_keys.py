"""``safelight keys …``: who may ask an inference server that others than this machine can reach."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline import api_keys, console
from pipeline.errors import InvalidInput
from pipeline.private_files import unusable, write_private

app = typer.Typer(help="Keys of those who may ask an inference server.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Whose key it is; shown in no answer.")]
File = Annotated[Path, typer.Option(help="The server's SAFELIGHT_SERVING_API_KEYS_FILE.")]
FILE = Path("api-keys.txt")


@app.command("new")
def keys_new(name: Name, file: File = FILE) -> None:
    """Make a key and print it, this once; in place of an older one of that name. Servers follow within a second."""
    keys = _read(file)
    key = api_keys.new_key()
    keys[api_keys.refuse_odd_name(name)] = api_keys.digest_of_key(key)
    write_private(file, api_keys.written(keys))
    console.out(key)
    console.say(f"safelight: {file} has its SHA-256; the key itself is kept nowhere.")


@app.command("revoke")
def keys_revoke(name: Name, file: File = FILE) -> None:
    """Take a key back. Servers follow within a second."""
    keys = _read(file)
    if keys.pop(name, None) is None:
        raise InvalidInput(f"{file} has no key {name!r}: it has {', '.join(keys) or 'none'}.")
    write_private(file, api_keys.written(keys))


@app.command("list")
def keys_list(file: File = FILE) -> None:
    """List the names of the keys that are good."""
    for name in _read(file):
        console.out(name)


def _read(file: Path) -> dict[str, str]:
    try:
        return dict(api_keys.read(file.read_text(encoding="utf-8"), str(file)) or {})
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise unusable(file, error) if isinstance(error, OSError) else InvalidInput(f"{file} is not text.") from error
