"""``python -m scheduler`` is the command ``scheduler``."""

from __future__ import annotations

import sys

from scheduler.installed import Mixed, require

CONFIG = 3  # as `Exit.CONFIG`, which may not be there to be imported


def main() -> None:
    """Run the command, or say that another project's files are in its way."""
    try:
        require()
        from scheduler.cli.app import main as command
    except Mixed as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(CONFIG)
    command()


if __name__ == "__main__":
    main()
