"""``python -m hpo.worker``: one worker for one study, in this process.

Any job system can start it: Slurm, Kubernetes, a shell. If its process dies, its lease expires and another worker
resumes its trial.
"""

import os
from typing import Any

from hpo.ui import cli

_BLAS_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


@cli.command("python -m hpo.worker")
@cli.study_argument
@cli.storage_option
@cli.storage_timeout_option
@cli.option("--trials", type=cli.Integer(1), help="Total number of trials.  [default: as in the study file]")
@cli.option("--trial-timeout", type=cli.Duration(), help="End a trial after this time of training.")
@cli.option("--memory-limit", type=cli.ByteSize(), help="End a trial if it needs more memory: 500M, 2G.")
@cli.allow_import_option
@cli.confirm_option
@cli.verbose_option
def worker(**options: Any) -> int:
    """Run one worker of STUDY, a name or a .toml file, until the study has ended."""
    # BLAS reads the variables when NumPy is imported.
    os.environ.update(_BLAS_ENVIRONMENT)
    from hpo.runner.standalone import StandaloneOptions, run
    from hpo.ui.exit_codes import EXIT_INTERRUPTED
    from hpo.ui.logs import configure_logging

    configure_logging(verbose=options["verbose"])
    return 0 if run(StandaloneOptions(**options)) else EXIT_INTERRUPTED


if __name__ == "__main__":
    cli.main(worker)
