"""The server side: what every strategy does, and what one may change."""
