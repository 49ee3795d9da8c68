"""`python -m mnist_ddpm`: the command line."""

import sys

from mnist_ddpm.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
