"""How a rollout can end."""

from enum import IntEnum


class Exit(IntEnum):
    """Exit status: what the service is in, whatever the reason was."""

    DONE = 0  # the new version is primary, healthy and passed its checks; or there was nothing to do
    REFUSED = 1  # nothing was changed: a wrong file or option, a dirty tree, a wrong token, a refusal of the control plane
    USAGE = 2  # nothing was changed: the command line is wrong
    UNREACHABLE = 3  # the control plane did not answer, and nothing is known to have changed
    TAKEN_BACK = 4  # the new version failed; the one before is serving again
    STUCK = 5  # the new version failed and could not be taken back, or the one before is broken too: somebody has to look
    INTERRUPTED = 130  # Ctrl-C: the service was left as it was at that moment


class Refused(Exception):
    """Something is wrong with what was asked; nothing was changed."""


class Unreachable(Exception):
    """No answer, or a 5xx: nothing is known about what was done."""


class Failed(Exception):
    """The new version is not fit to serve; the message says why."""
