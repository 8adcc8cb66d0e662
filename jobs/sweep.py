"""`xtdist sweep …` for `ray job submit --working-dir . -- python jobs/sweep.py …`."""

import sys

from xtdist.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
