"""Keys with which clients ask an inference server, and the file that tells the server which of them are good.

- **The file holds no key**: a line is a name and the SHA-256 of a key, so who reads the file can ask nothing. A key is
  32 random letters and digits, 190 bits, so one SHA-256 is as good as bcrypt: a slow hash makes guesses at what people
  choose expensive, and nobody guesses at 190 bits. It would cost a tenth of a second for each new connection.
- **The line** ``off`` **instead of any** says that no key is needed: a decision that somebody took, other than a file
  that is missing or empty. An empty one holds no key, and lets nobody in.
- Written as a whole, by a rename: whoever reads it meanwhile finds the old or the new one.
"""

import hashlib
import re
import secrets
import string
from collections.abc import Mapping
from typing import Final

from pipeline.errors import InvalidInput

OFF: Final = "off"
NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
DIGEST: Final = re.compile(r"[0-9a-f]{64}")
LETTERS: Final = string.ascii_letters + string.digits
HEAD: Final = "# Who may ask the inference server: a name, and the SHA-256 of a key.\n"


def new_key() -> str:
    """A new key: 190 bits."""
    return "".join(secrets.choice(LETTERS) for _ in range(32))


def digest_of_key(key: str | bytes) -> str:
    """What stands for a key in the file: its SHA-256, in hexadecimal."""
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).hexdigest()


def refuse_odd_name(name: str) -> str:
    """``name``, where it can name a key.

    Raises:
        InvalidInput: it cannot.
    """
    if not NAME.fullmatch(name):
        raise InvalidInput(f"{name!r} cannot name a key: use a-z, 0-9, - and _, 63 of them at most.")
    return name


def written(keys: Mapping[str, str] | None) -> str:
    """The text of a file of ``keys``, digest by name; of None, of one that asks for no key."""
    return HEAD + (f"{OFF}\n" if keys is None else "".join(f"{name} {digest}\n" for name, digest in keys.items()))


def read(text: str, source: str) -> Mapping[str, str] | None:
    """Digest by name; None where no key is needed.

    Args:
        text: of a file.
        source: what to call it in a sentence.

    Raises:
        InvalidInput: a line is not what it should be.
    """
    lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1)]
    said = [(number, words) for number, words in lines if words and not words[0].startswith("#")]
    if [words for _, words in said] == [[OFF]]:
        return None
    found: dict[str, str] = {}
    for number, words in said:
        if len(words) != 2 or not NAME.fullmatch(words[0]) or not DIGEST.fullmatch(words[1]) or words[0] in found:
            raise InvalidInput(
                f"{source}, line {number}: not a name of its own and a SHA-256, as `safelight keys new` writes them."
            )
        found[words[0]] = words[1]
    return found
