"""`xtdist serve …` for `ray job submit --working-dir . -- python jobs/serve.py …`."""

import sys

from xtdist.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
