"""`python -m gtkern` is `gtkern`."""

from gtkern.cli import main

main()
