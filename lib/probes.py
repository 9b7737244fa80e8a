import numpy as np


def ridge_probe(train, train_targets, test, test_targets):
    mu, sd = train.mean(0), train.std(0) + 1e-6
    a, b = (train - mu) / sd, (test - mu) / sd
    w = np.linalg.solve(a.T @ a + len(a) * 0.1 * np.eye(a.shape[1]), a.T @ (train_targets - train_targets.mean(0)))
    return float(((b @ w + train_targets.mean(0)).argmax(1) == test_targets.argmax(1)).mean())
