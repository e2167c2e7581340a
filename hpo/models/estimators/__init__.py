"""Models of scikit-learn's interface: search, settings, budget, training and storage of an estimator."""
