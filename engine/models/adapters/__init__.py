"""Adapters: few variables beside frozen layers (LoRA, scale and shift, bottlenecks), most of which merge back into them."""
