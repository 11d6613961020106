"""Debiased linear CKA: how alike two spaces arrange the same users, whatever their axes and scale. Pure.

With the Gram matrices K = X Xᵀ, L = Y Yᵀ, their diagonals set to zero (K̃, L̃), over n users:

    HSIC₁(K, L) = [ tr(K̃ L̃) + (1ᵀK̃1)(1ᵀL̃1) / ((n−1)(n−2)) − 2/(n−2) · 1ᵀK̃ L̃1 ] / (n (n−3))
    CKA = HSIC₁(K, L) / √( HSIC₁(K, K) HSIC₁(L, L) )

HSIC₁ is unbiased (Song et al., JMLR 13 (2012) 1393), so unrelated spaces give 0 on average however wide they are, where
the plain CKA nears 1 as the width passes the number of users (Nguyen, Raghu and Kornblith, arXiv:2010.15327).
"""

from __future__ import annotations

import numpy as np

MIN_USERS = 4


def debiased_cka(x: np.ndarray, y: np.ndarray) -> float | None:
    """CKA of two representations of the same users.

    Args:
      x: [U, a]; y: [U, b]. Columns need not be centred.

    Returns:
      at most about 1, 0 on average for independent ones, and possibly below; None for fewer than four users or a
      representation that does not vary.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) < MIN_USERS:
        return None
    a, b = (_gram(part) for part in (x, y))
    scale = _hsic(a, a) * _hsic(b, b)
    return float(_hsic(a, b) / np.sqrt(scale)) if scale > 0 else None


def _gram(x: np.ndarray) -> np.ndarray:
    x = x - x.mean(0)  # the estimator is invariant to it; numerically it is better
    gram = x @ x.T
    np.fill_diagonal(gram, 0.0)
    return gram


def _hsic(a: np.ndarray, b: np.ndarray) -> float:
    n = len(a)
    of_a, of_b = a.sum(1), b.sum(1)
    mixed = (a * b).sum() + of_a.sum() * of_b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (of_a @ of_b)
    return float(mixed / (n * (n - 3)))
