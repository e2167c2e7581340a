"""Result of a study: the best trial's parameters with metrics on each split, and its predictor.

Only this module reads the test split.
"""

import json
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from optuna.trial import FrozenTrial, TrialState

from hpo.config.study import StudyConfig
from hpo.data.division.splits import Split, SplitSizes
from hpo.data.metrics import METRICS, Array, Metric, metric_of
from hpo.data.prepared.cache import PreparedData, data_name, find_prepared, prepare, prepare_again, sha256_of
from hpo.data.sources import data_config
from hpo.errors import MissingDataError, StorageError, TrialFailureError
from hpo.models.fitted import FittedModel, unpack_folds
from hpo.models.kinds.registry import check_models, model_of
from hpo.models.predictor import Member, Predictor
from hpo.storage.database.connection import Database
from hpo.storage.study import Study, load_study
from hpo.storage.tables.weight_retention import KEPT_WEIGHTS
from hpo.tuning import confirmation
from hpo.tuning.confirmation import Confirmed
from hpo.tuning.outcomes import COMPLETED_OUTSIDE, complete_trial, explain_no_complete
from hpo.tuning.refit import Refit, refit_trial
from hpo.tuning.sampling import SamplingError, count_validation_rows, estimate_sampling_error
from hpo.utils.system import versions

SCHEMA_VERSION = 1
_PACKAGES = ("hpo", "optuna", "numpy", "scikit-learn", "sqlalchemy")


def export_study(
    config: StudyConfig, database: Database, number: int | None = None, *, refit: bool = False
) -> tuple[dict[str, Any], Predictor | None]:
    """Return the exported parameters of a trial, by default the best, and its predictor.

    If the data are missing, their prepared copy replaces them. Without a copy, the parameters have the recorded metrics
    only, and there is no predictor.

    Raises:
        StorageError: if the database has no such study.
        StudyMismatchError: if the study was created from other settings or other data.
        TrialFailureError: if the study has no such complete trial.
    """
    check_models(config)
    with database.reading() as readable, readable.translate_errors(), load_study(readable, config) as study:
        data = _find_data(study, config)
        if data is None:
            return export_recorded(study, config, number), None
        if number is None:
            return export_best(study, config, data, refit=refit)
        return export_trial(study, config, data, number, refit=refit)


def _find_data(study: Study, config: StudyConfig) -> PreparedData | None:
    try:
        data = prepare(config)
    except MissingDataError:
        study.check_same_settings(config, study.fingerprint)
        return find_prepared(config, study.fingerprint)
    study.check_same_settings(config, data.fingerprint)
    return data


def export_best(
    study: Study, config: StudyConfig, data: PreparedData, *, refit: bool = False
) -> tuple[dict[str, Any], Predictor]:
    """Return the exported parameters of the best trial and its predictor.

    Raises:
        TrialFailureError: if no trial is complete.
    """
    return _export(study, config, data, *_best(study, config, data.fingerprint), refit=refit)


def export_trial(
    study: Study, config: StudyConfig, data: PreparedData, number: int, *, refit: bool = False
) -> tuple[dict[str, Any], Predictor]:
    """Return the exported parameters of a trial and its predictor.

    Raises:
        TrialFailureError: if the trial is not complete, or its weights are not stored.
    """
    return _export(study, config, data, _numbered(study, number), [], refit=refit)


def to_json(parameters: dict[str, Any]) -> str:
    """Return the parameters as strict JSON, without NaN and Infinity."""
    return json.dumps(parameters, indent=2, allow_nan=False) + "\n"


def _best(study: Study, config: StudyConfig, fingerprint: str) -> tuple[FrozenTrial, list[Confirmed]]:
    confirmed = confirmation.confirmed_trials(study, config, fingerprint)
    trial = next(iter([entry.trial for entry in confirmed] or confirmation.candidates(study)), None)
    if trial is None:
        raise TrialFailureError(explain_no_complete(config, study.trials))
    return trial, confirmed


def _numbered(study: Study, number: int) -> FrozenTrial:
    trial = complete_trial(study.name, study.trials, number, lambda: _exportable(study))
    if not study.store.is_trained(number):
        problem = f"trial {number} of the study '{study.name}' was {COMPLETED_OUTSIDE}"
        raise TrialFailureError(f"{problem}; {_exportable(study)}")
    return trial


def _export(
    study: Study,
    config: StudyConfig,
    data: PreparedData,
    trial: FrozenTrial,
    confirmed: Sequence[Confirmed],
    *,
    refit: bool,
) -> tuple[dict[str, Any], Predictor]:
    packed = study.store.weights(trial.number)
    if packed is None:
        raise _missing_weights_error(study, trial.number)
    models = _unpack(study, trial.number, packed, config.allowed_imports)
    outputs = _outputs(models, prepare_again(config, data.folder, data.fingerprint))
    metric = metric_of(config, data.task.name)
    regularization = model_of(config, trial.params).regularization
    metrics = {
        **_values_of(metric, outputs, data.classes),
        "train_loss": statistics.fmean(
            data.task.loss(predicted, y) + model.penalty(regularization)
            for model, (predicted, y) in zip(models, outputs["train"], strict=True)
        ),
    }
    for other in METRICS.values():
        if other.task == metric.task and other != metric:
            metrics |= _values_of(other, outputs, data.classes)
    sampling = _sampling_error(metric, outputs["validation"][: data_config(config).folds or 1], data.classes)
    validation = {
        "rows": count_validation_rows(config, data),
        "sampling_error": None if sampling is None else sampling.error,
        "folds": _fold_values(config, metric, outputs["validation"], data.classes),
    }
    recorded = _Recorded(metrics, validation, _data_summary(config, data), sampling)
    parameters = _describe(study, config, trial, confirmed, recorded)
    if refit:
        return _with_refit(parameters, refit_trial(config, data, trial), metric)
    members = tuple(Member(fold.preprocessor, model) for fold, model in zip(data.folds, models, strict=True))
    return parameters, Predictor(data.classes, members, data.feature_names)


def _with_refit(parameters: dict[str, Any], refit: Refit, metric: Metric) -> tuple[dict[str, Any], Predictor]:
    """Return the parameters with the figures of a refit, and its predictor."""
    (fold,), (test,), data = refit.data.folds, refit.data.load_test(), refit.data
    splits = {"train": fold.train, "test": test}
    outputs = {name: [(refit.model.outputs(split.features), split.y)] for name, split in splits.items()}
    figures = {"rows": data.sizes.train, "steps": refit.steps, "metrics": _values_of(metric, outputs, data.classes)}
    predictor = Predictor(data.classes, (Member(fold.preprocessor, refit.model),), data.feature_names)
    return parameters | {"refit": figures}, predictor


def _outputs(models: Sequence[FittedModel], data: PreparedData) -> dict[str, list[tuple[Array, Array]]]:
    """Return outputs and targets: each fold's model on its splits, all models together on the test split."""

    def predict(splits: Iterable[Split]) -> list[tuple[Array, Array]]:
        return [(model.outputs(split.features), split.y) for model, split in zip(models, splits, strict=True)]

    test = predict(data.load_test())
    return {
        "train": predict(fold.train for fold in data.folds),
        "validation": predict(fold.validation for fold in data.folds),
        "test": [(data.task.mean_outputs([outputs for outputs, _ in test]), test[0][1])],
    }


def _values_of(
    metric: Metric, outputs: Mapping[str, list[tuple[Array, Array]]], classes: Array
) -> dict[str, float | None]:
    """Return the mean of a metric over the folds for each split; None if a fold has no value."""
    return {
        f"{name}_{metric.name}": statistics.fmean(metric.score(predicted, y) for predicted, y in pairs)
        if all(metric.is_defined(y, classes) for _, y in pairs)
        else None
        for name, pairs in outputs.items()
    }


def _sampling_error(metric: Metric, validation: Sequence[tuple[Array, Array]], classes: Array) -> SamplingError | None:
    """Return the sampling error of the validation rows, None if the metric is not defined for them."""
    is_defined = all(metric.is_defined(y, classes) for _, y in validation)
    return estimate_sampling_error(metric, validation) if is_defined else None


def _fold_values(
    config: StudyConfig, metric: Metric, validation: Sequence[tuple[Array, Array]], classes: Array
) -> dict[str, Any] | None:
    """Return the value of each fold and the standard error of their mean, None without cross-validation."""
    folds = data_config(config).folds
    if folds is None:
        return None
    values = [metric.score(outputs, y) if metric.is_defined(y, classes) else None for outputs, y in validation]
    known = [value for value in values if value is not None]
    # Repeats have the same rows, so they do not reduce the error.
    error = statistics.stdev(known) / folds**0.5 if len(known) == len(values) else None
    return {"values": values, "standard_error": error}


def _unpack(study: Study, number: int, packed: bytes, allowed: Collection[str]) -> list[FittedModel]:
    try:
        return unpack_folds(packed, allowed)
    except ValueError as error:
        problem = f"the weights of trial {number} of the study '{study.name}' are damaged in the database: {error}"
        raise StorageError(f"{problem}; export another trial with --trial") from None


def export_recorded(study: Study, config: StudyConfig, number: int | None = None) -> dict[str, Any]:
    """Return the exported parameters of a trial without its data. A metric that is not recorded is None."""
    if number is None:
        trial, confirmed = _best(study, config, study.fingerprint)
    else:
        trial, confirmed = _numbered(study, number), []
    metric = study.metric.removeprefix("validation ")
    names = [metric, *(other.name for other in METRICS.values() if other.task == METRICS[metric].task)]
    unknown = [f"{split}_{name}" for name in dict.fromkeys(names) for split in ("train", "validation", "test")]
    # The order of an export with the data.
    metrics = dict.fromkeys([*unknown[:3], "train_loss", *unknown[3:]]) | {f"validation_{metric}": trial.value}
    validation = {"rows": None, "sampling_error": None, "folds": None}
    recorded = _Recorded(metrics, validation, _missing_data_summary(config, study.fingerprint), None)
    return _describe(study, config, trial, confirmed, recorded)


class _Recorded(NamedTuple):
    """Figures of a trial.

    Attributes:
        metrics: The metrics on each split.
        validation: The rows and the values of the folds that the choice rests on.
        data: The description of the data.
        sampling: The sampling error of the validation rows, None if it is unknown.
    """

    metrics: Mapping[str, float | None]
    validation: Mapping[str, Any]
    data: Mapping[str, Any]
    sampling: SamplingError | None


def _describe(
    study: Study, config: StudyConfig, trial: FrozenTrial, confirmed: Sequence[Confirmed], recorded: _Recorded
) -> dict[str, Any]:
    assert trial.datetime_complete is not None
    model = model_of(config, trial.params)
    states = Counter(trial.state for trial in study.trials)
    metric = study.metric.removeprefix("validation ")
    created = max(confirmation.completion_times(confirmed), default=trial.datetime_complete)
    return {
        "schema_version": SCHEMA_VERSION,
        "study": config.study.name,
        "trial": trial.number,
        "params": model.settings,
        "metrics": recorded.metrics,
        "confirmation": confirmation.to_json(confirmed, recorded.sampling, metric),
        "trials": {
            "complete": states[TrialState.COMPLETE],
            "pruned": states[TrialState.PRUNED],
            "failed": states[TrialState.FAIL],
            "unfinished": sum(count for state, count in states.items() if not state.is_finished()),
        },
        "data": recorded.data,
        "seed": config.study.seed,
        # The time of the last trial, not of the export, so that each export of a study gives the same JSON.
        "created": created.isoformat(timespec="seconds"),
        "versions": versions([*_PACKAGES, *model.packages]),
        "metric": metric,
        "validation": recorded.validation,
    }


def _data_summary(config: StudyConfig, data: PreparedData) -> dict[str, Any]:
    folds = [{"train": len(fold.train.y), "validation": len(fold.validation.y)} for fold in data.folds]
    return {
        "name": data.name,
        "fingerprint": sha256_of(data.fingerprint),
        **data.sizes._asdict(),
        "features": data.features,
        "pca": {"variance": data.pca, "components": data.components} if data.pca else None,
        **({} if data_config(config).folds is None else {"folds": folds}),
    }


def _missing_data_summary(config: StudyConfig, fingerprint: str) -> dict[str, Any]:
    pca = data_config(config).pca
    return {
        "name": data_name(config),
        "fingerprint": sha256_of(fingerprint),
        **dict.fromkeys([*SplitSizes._fields, "features"]),
        "pca": {"variance": pca, "components": None} if pca else None,
    }


def _missing_weights_error(study: Study, number: int) -> TrialFailureError:
    return TrialFailureError(
        f"the study '{study.name}' has no weights of trial {number}; "
        f"they are kept of the {KEPT_WEIGHTS} best complete trials; {_exportable(study)}"
    )


def _exportable(study: Study) -> str:
    """Advise the trials that can be exported."""
    numbers = [str(number) for number in study.store.retained_trials()]
    return f"--trial exports any of {', '.join(numbers)}" if numbers else "no trial can be exported"
