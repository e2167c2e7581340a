"""Division of the rows of a data set into splits and folds: at random, by groups, or by time."""
