"""Tasks: classification and regression."""

import numpy as np
import pytest

from hpo.data.task import TASKS, Classification, Regression


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


def test_classes_are_outputs_and_groups():
    task = TASKS["classification"]
    assert task.n_outputs(np.array(["a", "b", "c"])) == 3
    y = np.array([0, 1, 1])
    assert task.stratify(y) is y


def test_numbers_are_their_own_targets():
    task = TASKS["regression"]
    y, classes = task.encode(np.array([3, 1, 2]))
    assert (y.tolist(), y.dtype, classes.tolist()) == ([3.0, 1.0, 2.0], np.float64, [])
    assert task.n_outputs(classes) == 1
    assert task.stratify(y) is None
    assert task.decode(np.array([[0.5], [7.0]]), classes).tolist() == [0.5, 7.0]


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (["a", "b"], "the labels are text, such as 'a'; regression needs numbers"),
        ([True, False], "the labels are bool, such as True; regression needs numbers"),
        ([2.5, 2.5], "all 2 labels are 2.5; at least two numbers are required"),
    ],
)
def test_labels_without_numbers_are_refused(labels, problem):
    with pytest.raises(ValueError, match=problem):
        Regression().encode(np.array(labels))
