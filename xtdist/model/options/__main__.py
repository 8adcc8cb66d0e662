"""``python -m xtdist.model.options`` prints the matrix of options."""

import sys

from xtdist.model.options.matrix import matrix

if __name__ == "__main__":
    sys.stdout.write(matrix())
