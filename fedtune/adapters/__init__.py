"""Adapters: what is trained, frozen and sent, by `peft.LoraConfig`."""
