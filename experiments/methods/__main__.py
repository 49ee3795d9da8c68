"""`python -m experiments.methods train --objective drifting`: the package's commands, and these."""

import sys

from experiments.methods import add_methods
from mnist_ddpm.__main__ import main

if __name__ == "__main__":
    add_methods()
    sys.exit(main())
