"""For programs of the tests that fork: the fixture `run_forking` runs them apart from pytest, and they import this."""

import os
import time


def forked(work, seconds=30):
    """What `work` gives or raises in a forked child, as text.

    Raises:
        SystemExit: the child waits for ever.
    """
    reads, writes = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            said = str(work())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writes, said.encode())
        os._exit(0)
    os.close(writes)
    for _ in range(100 * seconds):
        if os.waitpid(pid, os.WNOHANG)[0]:
            break
        time.sleep(0.01)
    else:
        os.kill(pid, 9)
        raise SystemExit("the child waits for ever")
    with os.fdopen(reads) as pipe:
        return pipe.read()
