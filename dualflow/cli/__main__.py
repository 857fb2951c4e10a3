"""Entry point of `python -m dualflow.cli`."""

from dualflow.cli import main

if __name__ == "__main__":
    main(prog_name="dualflow")
