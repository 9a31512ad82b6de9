"""Malicious clients: what they send and what they train on; no strategy knows of them."""
