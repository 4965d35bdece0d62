"""`python -m cubelet`: the command line."""

from cubelet.cli.main import main

if __name__ == "__main__":
    main()
