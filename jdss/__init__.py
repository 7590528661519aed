"""Data subset selection in JAX, for hyper-parameter tuning at a fraction of the cost.

The public names stand in `__init__.pyi`. Each is imported when it is first used, so that
`jdss --help` and a worker's start do not wait for what they do not need.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0.dev0"
