"""``python -m scheduler`` is the command ``scheduler``."""

from __future__ import annotations

from scheduler.cli.entry import main

if __name__ == "__main__":
    main()
