"""Changes of the forward that papers propose: steering and early exit."""
