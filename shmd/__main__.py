"""``python -m shmd`` is the command ``shmd``."""

from __future__ import annotations

from shmd.cli import main

if __name__ == "__main__":
    main()
