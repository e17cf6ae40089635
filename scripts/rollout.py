"""From the workspace to production, with proof, and back by itself if the proof fails.

    python scripts/rollout.py plan              what would happen; needs no account
    python scripts/rollout.py                   the same as `deploy`
    python scripts/rollout.py deploy --canary 10,50
    python scripts/rollout.py status | rollback | terminate

Every command takes --dry-run, and --help after a command lists its options. `--target ray` rolls out to any Ray cluster whose nodes have
the packages (or --quick), `deploy --target kuberay` prints a RayService manifest. Neither has Anyscale's token, canaries or `rollback`:
unless the application's own `tokens` are set, whoever reaches the cluster is served.

A deploy replaces the model's `revision` by the commit that the hub says it is; without the hub, --set revision=COMMIT (40 hex digits).

A version is named after its commit. A rollout deploys it, waits until it is primary and healthy, and checks it through the service's own
address: readiness, the picture of a golden prompt, and the 95th percentile of the time of at least 20 pictures; with --canary at each
step. If anything fails, the version before serves again and the exit status says so:

    0    the new version serves all requests and passed
    1    nothing was changed: a wrong file or option, uncommitted changes, a wrong token, a refusal
    2    nothing was changed: the command line is wrong
    3    the control plane did not answer; the message says what is known
    4    the new version failed and was taken back: the one before serves all requests
    5    a version failed and was not taken back (none was there before it, it served already, or that failed): somebody has to look
    130  Ctrl-C: the service was left as it was; the same command takes the rollout up again

The account is that of ANYSCALE_CLI_TOKEN (and ANYSCALE_HOST), or of `anyscale login`. No secret is ever printed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from scripts.release.cli import main

if __name__ == "__main__":
    sys.exit(main(help_text=__doc__))
