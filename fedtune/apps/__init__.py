"""The client side: what answers a strategy's messages."""
