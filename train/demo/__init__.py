"""The clock, end to end."""

from train.demo.demo import demo

__all__ = ["demo"]
