"""Chat with the base model or an adapter in the terminal."""
