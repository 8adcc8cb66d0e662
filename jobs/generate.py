"""`xtdist generate …` for `ray job submit --working-dir . -- python jobs/generate.py …`."""

import sys

from xtdist.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
