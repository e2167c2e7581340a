"""Contract of an objective, as tests that an implementation inherits."""

from collections.abc import Callable, Mapping, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

from hpo.runner.limits import TrialTimeoutError
from hpo.runner.objective import Objective, TrialPruned, TrialStopped
from hpo.search.space import from_unit
from hpo.storage.tables.leases import Checkpoint


class RecordingTrial:
    """Trial without a database that records the calls of an objective.

    Args:
        params: The trial's parameters.
        number: The trial's number.
        checkpoint: The state to resume from.
        stop_at: The first step after which the trial is stopped.
        prune_at: The first step after which the trial is pruned.
        timeout_at: The tick at which the trial times out.
    """

    def __init__(
        self,
        params: Mapping[str, Any],
        number: int = 0,
        checkpoint: bytes | None = None,
        *,
        stop_at: int | None = None,
        prune_at: int | None = None,
        timeout_at: int | None = None,
    ) -> None:
        self.params = params
        self.number = number
        self.reports: list[tuple[int, float]] = []
        self.ticks = 0
        self._checkpoint = checkpoint
        self._stop_at = stop_at
        self._prune_at = prune_at
        self._timeout_at = timeout_at

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return the value of a parameter."""
        return float(self.params[name])

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Return the value of a parameter."""
        return int(self.params[name])

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Return the value of a parameter."""
        return self.params[name]

    def report(self, value: float, step: int) -> None:
        """Record a value."""
        self.reports.append((step, value))

    def should_prune(self) -> bool:
        """Return whether a report has come to the step of the pruning."""
        return self._prune_at is not None and any(step >= self._prune_at for step, _ in self.reports)

    def load_checkpoint(self) -> bytes | None:
        """Return the state to resume from."""
        return self._checkpoint

    def save_checkpoint(self, state: Callable[[], bytes], step: int) -> None:
        """End a step.

        Raises:
            TrialPruned: at the step of the pruning.
            TrialStopped: at the step of the stop.
        """
        if self.should_prune():
            raise TrialPruned
        if self._stop_at is not None and step >= self._stop_at:
            raise TrialStopped(Checkpoint(step, 0.0, state()))

    def tick(self) -> None:
        """Count a piece of work.

        Raises:
            TrialTimeoutError: at the tick of the timeout.
        """
        self.ticks += 1
        if self.ticks == self._timeout_at:
            raise TrialTimeoutError


class _Run(NamedTuple):
    """Result of a whole trial."""

    value: float
    reports: list[tuple[int, float]]
    artifact: bytes | None


class ObjectiveContract:
    """Tests of the protocol ``Objective``. A subclass provides ``make_objective``."""

    def make_objective(self) -> Objective:
        """Return an objective that is not set up."""
        raise NotImplementedError

    def make_params(self, objective: Objective) -> Mapping[str, Any]:
        """Return parameters of a trial with at least three steps."""
        return _params_at(objective, 0.5)

    def test_description_is_complete(self) -> None:
        """Check the names of the metric, of the data and of the cost parameter."""
        objective = self.make_objective()
        assert objective.metric
        assert isinstance(objective.fingerprint, str)
        assert objective.cost_parameter is None or objective.cost_parameter in (objective.space or {})

    def test_number_of_steps_is_within_maximum(self) -> None:
        """Check the number of steps for several parameters."""
        objective = self.make_objective()
        for unit in (0.0, 0.5, 1 - 1e-9):
            assert 1 <= _n_steps(objective, _params_at(objective, unit)) <= objective.max_steps

    def test_trial_is_function_of_number_and_params(self) -> None:
        """Check that another trial in between changes nothing."""
        objective, params = self._set_up()
        first = _run(objective, RecordingTrial(params, 1))
        _run(objective, RecordingTrial(_params_at(objective, 0.25), 2))
        assert _run(objective, RecordingTrial(params, 1)) == first

    def test_reports_have_increasing_steps(self) -> None:
        """Check the steps of the reports."""
        objective, params = self._set_up()
        run = _run(objective, RecordingTrial(params))
        steps = [step for step, _ in run.reports]
        assert steps == sorted(set(steps))
        assert all(1 <= step <= _n_steps(objective, params) for step in steps)

    def test_value_is_last_report(self) -> None:
        """Check that the final value equals a report after the last step."""
        objective, params = self._set_up()
        run = _run(objective, RecordingTrial(params))
        if run.reports and run.reports[-1][0] == _n_steps(objective, params):
            assert run.value == run.reports[-1][1]
        assert isinstance(run.value, float)

    def test_stopped_trial_resumes_to_same_value(self) -> None:
        """Check that a resumed trial continues as if it had never been stopped."""
        objective, params = self._set_up()
        whole = _run(objective, RecordingTrial(params))
        for stop_at in (1, 2, _n_steps(objective, params) - 1):
            stopped = RecordingTrial(params, stop_at=stop_at)
            checkpoint = _checkpoint_of(objective, stopped)
            resumed = RecordingTrial(params, checkpoint=checkpoint.state)
            rest = _run(objective, resumed)
            assert (rest.value, rest.artifact) == (whole.value, whole.artifact)
            # No step is repeated or left out.
            assert stopped.reports + resumed.reports == whole.reports

    def test_unknown_checkpoint_starts_over(self) -> None:
        """Check that a checkpoint of another version is ignored."""
        objective, params = self._set_up()
        whole = _run(objective, RecordingTrial(params))
        assert _run(objective, RecordingTrial(params, checkpoint=b"of another version")) == whole

    def test_pruned_trial_ends_at_once(self) -> None:
        """Check that the exception of a pruned trial passes."""
        objective, params = self._set_up()
        trial = RecordingTrial(params, prune_at=1)
        assert _exception_of(objective, trial) is TrialPruned
        assert len(trial.reports) == 1

    def test_timeout_ends_trial(self) -> None:
        """Check that the exception of a timeout passes."""
        objective, params = self._set_up()
        trial = RecordingTrial(params, timeout_at=1)
        assert _exception_of(objective, trial) is TrialTimeoutError or trial.ticks == 0

    def test_objective_reaches_worker_process(self) -> None:
        """Check that a pickled copy gives the same values."""
        objective, params = self._set_up()
        copy: Objective = ForkingPickler.loads(ForkingPickler.dumps(objective))
        copy.setup()
        assert _run(copy, RecordingTrial(params)) == _run(objective, RecordingTrial(params))

    def _set_up(self) -> tuple[Objective, Mapping[str, Any]]:
        objective = self.make_objective()
        objective.setup()
        return objective, self.make_params(objective)


def _n_steps(objective: Objective, params: Mapping[str, Any]) -> int:
    n_steps = objective.n_steps(params)
    assert n_steps is not None
    return n_steps


def _params_at(objective: Objective, unit: float) -> dict[str, Any]:
    """Return the parameters at the same quantile of each distribution."""
    assert objective.space is not None
    return {name: from_unit(distribution, unit) for name, distribution in objective.space.items()}


def _run(objective: Objective, trial: RecordingTrial) -> _Run:
    value = objective(trial)
    assert isinstance(value, float)
    return _Run(value, trial.reports, objective.artifact())


def _checkpoint_of(objective: Objective, trial: RecordingTrial) -> Checkpoint:
    try:
        objective(trial)
    except TrialStopped as stopped:
        assert stopped.checkpoint is not None
        return stopped.checkpoint
    raise AssertionError("the objective does not call save_checkpoint after each step")


def _exception_of(objective: Objective, trial: RecordingTrial) -> type[BaseException] | None:
    try:
        objective(trial)
    except (TrialPruned, TrialTimeoutError) as error:
        return type(error)
    return None
