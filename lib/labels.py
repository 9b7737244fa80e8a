import numpy as np


def targets(pairs, captions):
    k = int(pairs.labels.max()) + 1
    return np.eye(k, dtype=np.float32)[pairs.labels], tuple(pairs.label_names)


def planted(t, donor, kind):
    out = t.copy()
    rows = np.flatnonzero(kind == "wrong")
    out[rows] = t[donor[rows]]
    return out
