"""`xtdist doctor …` for `ray job submit --working-dir . -- python jobs/doctor.py …`."""

import sys

from xtdist.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
