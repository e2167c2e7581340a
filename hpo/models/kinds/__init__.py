"""Kinds of models, and the models of a study."""
