"""Classification."""

import numpy as np
import pytest
from data_files import make_config

from hpo.data.task import Classification, task_of


def test_encode_returns_positions_in_sorted_classes():
    y, classes = Classification().encode(np.array(["b", "a", "c", "a"]))
    assert y.tolist() == [1, 0, 2, 0]
    assert y.dtype == np.intp
    assert classes.tolist() == ["a", "b", "c"]


def test_encode_refuses_single_class():
    with pytest.raises(ValueError, match="all 3 labels are 7; at least two classes are required"):
        Classification().encode(np.array([7, 7, 7]))


def test_decode_returns_class_of_largest_output():
    outputs = np.array([[0.1, 0.9], [2.0, -1.0]])
    assert Classification().decode(outputs, np.array(["no", "yes"])).tolist() == ["yes", "no"]


def test_score_is_share_of_correct_rows():
    outputs = np.array([[0.1, 0.9], [2.0, -1.0], [0.0, 1.0], [3.0, 1.0]])
    assert Classification().score(outputs, np.array([1, 0, 0, 0])) == 0.75


def test_classes_are_outputs_and_groups():
    task = task_of(make_config("digits"))
    assert task.metric == "accuracy"
    assert task.n_outputs(np.array(["a", "b", "c"])) == 3
    y = np.array([0, 1, 1])
    assert task.stratify(y) is y
