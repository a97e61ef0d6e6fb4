"""`python -m async_history`: the command, if its script is not on the path."""

from async_history.cli import main

if __name__ == "__main__":
    main()
