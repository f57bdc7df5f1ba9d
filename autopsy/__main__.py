"""Lets `python -m autopsy` do what `autopsy` does."""

from autopsy.cli.app import main

if __name__ == "__main__":
    main()
