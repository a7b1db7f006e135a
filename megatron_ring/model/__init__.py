"""Ling-Lite on megatron-core: the parts we replace through its layer specs."""
