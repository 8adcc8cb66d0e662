"""`xtdist prepare …` for `ray job submit --working-dir . -- python jobs/prepare.py …`."""

import sys

from xtdist.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
