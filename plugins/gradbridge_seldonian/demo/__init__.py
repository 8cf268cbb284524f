"""`gradbridge demo`: stories told on the terminal, and saved as pictures."""
