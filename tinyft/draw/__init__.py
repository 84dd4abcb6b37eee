"""Pictures of what happens inside: the graph behind a Tensor, what a model attends to and would say layer by layer."""

from .graph import graph
from .inside import Inside, look
from .maps import attention_maps, lens
from .page import page

__all__ = ["Inside", "attention_maps", "graph", "lens", "look", "page"]
