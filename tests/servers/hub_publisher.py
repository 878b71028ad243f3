"""Publishes in forked processes that can be killed, so that imports happen once.

    python hub_publisher.py ZOO NAME URL

For every line on stdin it forks a child that publishes; it prints the child's pid, and how it ended.
"""

import os
import sys
from pathlib import Path

from zootools.hub.names import require_name
from zootools.hub.release import prepare
from zootools.hub.upload import upload


def main() -> None:
    zoo, name, url = sys.argv[1:]
    with prepare(Path(zoo), require_name(name)) as release:
        for _ in sys.stdin:
            pid = os.fork()
            if pid == 0:
                try:
                    upload(release, url, public=None, tag=None)
                except BaseException as error:
                    print(error, file=sys.stderr, flush=True)
                    os._exit(1)
                os._exit(0)
            print(pid, flush=True)
            print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main()
