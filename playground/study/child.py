"""Runs a command that must not outlive the process that started it: `python playground/study/child.py COMMAND ...`.

A study that is killed (even by kill -9, which nobody can catch) would otherwise leave its training runs behind, and the
next start would begin the same runs beside them. Only Linux can do this; elsewhere the command simply runs.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h; survives exec

if __name__ == "__main__":
    parent = int(sys.argv[1])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            sys.exit("the process that started this one is gone")
    os.execvp(sys.argv[2], sys.argv[2:])
