"""What the backends that Keras 3 can run on have in common. It is not a backend itself, and imports no Keras here."""
