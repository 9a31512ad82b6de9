"""Real server and client processes on Flower's own deployment."""
