"""What a study can ask for that does not come with hpo: PyTorch."""

from importlib.util import find_spec

from hpo.config.study import StudyConfig
from hpo.errors import StudyFileError


def has_torch() -> bool:
    """Whether PyTorch is installed."""
    return find_spec("torch") is not None


def check_installed(spec: StudyConfig) -> None:
    """See that everything is installed that the study asks for.

    Raises:
        StudyFileError: it is not.
    """
    if has_torch():
        return
    if spec.study.sampler == "gp":
        raise StudyFileError("study.sampler: 'gp' needs PyTorch; install it with: pip install 'hpo[gp]'")
    if _uses_torch(spec):
        table = "space" if "backend" in spec.space else "train"
        raise StudyFileError(f"{table}.backend: 'torch' needs PyTorch; install it with: pip install 'hpo[torch]'")


def warm_up(spec: StudyConfig) -> None:
    """Import what the study's trials train with, and let it make what it makes when it is first used."""
    if _uses_torch(spec):
        from hpo.models import mlp_torch as torch_network

        torch_network.warm_up()


def _uses_torch(spec: StudyConfig) -> bool:
    return "torch" in spec.values("backend")
