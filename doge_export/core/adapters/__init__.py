"""LoRA adapters as PEFT saves them (adapter_config.json, adapter_model.safetensors), merged into a checkpoint
as PEFT's merge_and_unload does it. What PEFT can do beyond that is refused by its name; a pickle is never
opened."""

from doge_export.core.adapters.adapter import Adapter, write_merged

__all__ = ["Adapter", "write_merged"]
