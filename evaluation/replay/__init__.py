"""What would policies have done on outputs that somebody recorded? `tersely replay` needs no model."""
