"""`python -m fedtune` is `fedtune`."""

from fedtune.cli.app import main

main()
