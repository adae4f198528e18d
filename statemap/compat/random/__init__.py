"""Random numbers, with brainstate's names, arguments and numbers.

```python
from statemap.compat import random

random.seed(42)
print(random.rand(3))  # [0.72766423 0.78786755 0.18169427]
```

The functions draw from `DEFAULT`, and as methods of a [`statemap.compat.random.RandomState`][]
from that one. With the same seed the numbers are those of brainstate 0.5.4, to the bit. Values of
parameters that are traced are not checked. There are no units here: a parameter with a unit is
refused.
"""

from . import _seed, _table
from ._seed import *  # noqa: F403
from ._state import DEFAULT as DEFAULT, RandomState as RandomState
from ._table import *  # noqa: F403


__all__ = ["RandomState", "DEFAULT"]
__all__ += _seed.__all__
__all__ += _table.__all__
