"""Runs a program in a terminal of 24 rows and talks to it, as a person would.

    in_terminal.py STEPS.json PROGRAM ARGUMENT…

A step is ["type", text], ["see", text] (waits for it, past what was seen before) or ["wait", seconds]. Prints all that
the terminal showed. Exit status: the program's, or 99 where something was not seen in time.
"""

import fcntl
import json
import os
import pty
import select
import struct
import sys
import termios
import time

PATIENCE = 60.0


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        steps = json.load(file)
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.argv[2], sys.argv[2:])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    shown, seen = "", 0

    def read(seconds):
        """More of what the terminal shows; false when the program has left."""
        nonlocal shown
        if select.select([terminal], [], [], seconds)[0]:
            try:
                data = os.read(terminal, 65536)
            except OSError:
                return False
            shown += data.decode("utf-8", "replace")
            return bool(data)
        return True

    def give_up(why):
        sys.stdout.write(shown)
        sys.stdout.write(f"\n{why}\n")
        os.kill(child, 9)
        sys.exit(99)

    for kind, what in steps:
        if kind == "type":
            os.write(terminal, what.encode("utf-8"))
        elif kind == "wait":
            end = time.monotonic() + what
            while time.monotonic() < end and read(0.05):
                pass
        else:
            end = time.monotonic() + PATIENCE
            while shown.find(what, seen) < 0:
                if not read(0.1) and shown.find(what, seen) < 0 or time.monotonic() > end:
                    give_up(f"not seen: {what!r}")
            seen = shown.find(what, seen) + len(what)
    end = time.monotonic() + PATIENCE
    while read(0.1):
        if time.monotonic() > end:
            give_up("the program does not end")
    sys.stdout.write(shown)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)


main()
