"""Running models behind one contract, `controller.types.Engine`."""
