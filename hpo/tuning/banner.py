"""Lines that a launch prints before it trains: the study, its data, and the rows that its choice rests on."""

import math
import statistics
from collections.abc import Sequence

from hpo.config.study import StudyConfig
from hpo.data.prepared.cache import PreparedData
from hpo.data.sources import data_config
from hpo.tuning.sampling import accuracy_error, count_validation_rows
from hpo.utils.text import count_of

# The accuracy of the example, whose standard error on fewer rows is above 0.02.
_ACCURACY = 0.9
_SMALL_ROWS = 225

# Sizes of folds that differ by less than this share are shown as one number.
_SIMILAR = 0.1


def banner_lines(config: StudyConfig, data: PreparedData) -> list[str]:
    """Return the lines about the data of a study."""
    pca = f", PCA at {data.pca:.0%} of the variance keeps {data.components}" if data.pca else ""
    return [
        f"data {data.name}: {_sizes(config, data)}, {data.features} features{pca}",
        *(f"data {data.name}: {note}" for note in data.notes),
        _choice(config, data),
    ]


def _sizes(config: StudyConfig, data: PreparedData) -> str:
    keys = data_config(config)
    if keys.folds is None:
        return f"{data.sizes.train}/{data.sizes.validation}/{data.sizes.test} rows"
    train = _about([len(fold.train.y) for fold in data.folds])
    validation = _about([len(fold.validation.y) for fold in data.folds])
    repeats = f"{keys.repeats} x " if keys.repeats > 1 else ""
    return f"{repeats}{keys.folds} folds of about {train}/{validation} rows, {count_of(data.sizes.test, 'test row')}"


def _about(sizes: Sequence[int]) -> str:
    low, high = min(sizes), max(sizes)
    is_similar = high - low <= max(1, _SIMILAR * high)
    return str(round(statistics.fmean(sizes))) if is_similar else f"{low}-{high}"


def _choice(config: StudyConfig, data: PreparedData) -> str:
    """Return how many rows the choice of the best trial rests on, with a warning if they are few."""
    rows = count_validation_rows(config, data)
    if len(data.classes):
        error = f"one standard error of an accuracy of {_ACCURACY} is {accuracy_error(_ACCURACY, rows):.3f}"
    else:
        error = f"one standard error of a mean over them is {1 / math.sqrt(rows):.2f} of a standard deviation"
    return f"the choice rests on {count_of(rows, 'validation row')}: {error}{_warning(config, data, rows)}"


def _warning(config: StudyConfig, data: PreparedData, rows: int) -> str:
    if rows >= _SMALL_ROWS:
        return ""
    keys, usable = data_config(config), data.sizes.train + data.sizes.validation
    if keys.order is not None:
        # The first of six windows is for training only.
        usable = usable * 5 // 6
    advice = f"; data.folds = 5 uses {usable} rows" if keys.folds is None else ""
    return f"; these are few, so the best trial is partly luck{advice}"
