"""`python -m pipeline` is the command `kizashi`."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
