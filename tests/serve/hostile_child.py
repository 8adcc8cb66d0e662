"""Loads weights folders given as arguments, watched: what may not happen while a folder is read
ends the process with code 3. One line of JSON for each folder."""

import json
import os
import resource
import sys
import time

from xtdist.checkpoint.weights import load_weights
from xtdist.config import UserError
from xtdist.serve.config import ServedModel
from xtdist.serve.places import check_served

FORBIDDEN = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen")
FORBIDDEN += ("socket.connect", "marshal.loads", "ctypes.dlopen", "os.remove", "os.rename")


def watch(event, args):
    opened = str(args[0]) if event == "open" else ""
    written = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    outside = "secret" in opened
    if event.startswith(FORBIDDEN) or written or outside:
        print(json.dumps({"forbidden": event, "of": opened}), flush=True)
        os._exit(3)


def outcome(load, folder):
    start = time.process_time()
    try:
        load(folder)
        said = "loaded"
    except UserError as e:
        said = f"{type(e).__name__}: {e}"
    return said, time.process_time() - start


def rss_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


good = sys.argv[1]
load_weights(good)  # imports what is imported late
check_served(ServedModel(name="m", weights=good))
before = rss_mib()
sys.addaudithook(watch)
for folder in sys.argv[1:]:
    checked, a = outcome(lambda f: check_served(ServedModel(name="m", weights=f)), folder)
    loaded, b = outcome(load_weights, folder)
    row = {"checked": checked, "loaded": loaded, "cpu_s": a + b, "grown_mib": rss_mib() - before}
    print(json.dumps(row), flush=True)
os._exit(0)  # torch's own exit handlers import what nobody read a folder for
