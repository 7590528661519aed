"""`python -m jdss` is the command `jdss`."""

from jdss.cli import main

main()
