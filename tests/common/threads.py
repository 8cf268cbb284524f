"""Threads that work at once."""

import threading


def at_once(work, count):
    """Run ``work(0)``, ``work(1)``, … each in a thread of its own, and wait for all; raises what one of them raised."""
    failed = []

    def guarded(index):
        try:
            work(index)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
