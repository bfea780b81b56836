"""All TensorRT plugins by name."""

from doge_export.triton.attention_plugins import ATTENTION_PLUGINS
from doge_export.triton.expert_plugins import EXPERT_PLUGINS
from doge_export.triton.plugin import Plugin

__all__ = ["NAMESPACE", "PLUGINS"]

#: The plugins' namespace in TensorRT's registry.
NAMESPACE = "doge"
PLUGINS: dict[str, Plugin] = {plugin.name: plugin for plugin in (*ATTENTION_PLUGINS, *EXPERT_PLUGINS)}
