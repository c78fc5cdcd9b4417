"""The former name of the simulator protocol."""

from vla.simulator import Simulator as World

__all__ = ["World"]
