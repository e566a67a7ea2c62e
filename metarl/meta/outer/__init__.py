"""The meta-objective, and the optimisers that take steps on it."""

from metarl.meta.outer.adam import Adam
from metarl.meta.outer.base import OUTER, Outer, OuterStep, make_outer, register_outer
from metarl.meta.outer.sgd import SGD
from metarl.meta.outer.trust_region import TrustRegion

__all__ = ["OUTER", "SGD", "Adam", "Outer", "OuterStep", "TrustRegion", "make_outer", "register_outer"]
