"""``safelight``'s door: so small that a Ctrl-C finds it ready, while what stands behind it is still being imported.

An interrupt during imports could come out as any error, with a traceback through a library. Nothing has begun by then,
so the process just ends, with the status that a shell expects.
"""

import os
import signal


def main() -> None:
    """Run a command."""
    before = signal.signal(signal.SIGINT, _leave)
    from pipeline import cli  # noqa: PLC0415 - what an interrupt must not break into

    signal.signal(signal.SIGINT, before)
    cli.main()


def _leave(*_: object) -> None:
    os.write(2, b"safelight: interrupted before anything was done.\n")
    os._exit(130)


if __name__ == "__main__":
    main()
