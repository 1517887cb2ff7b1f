"""Tasks with gold answers, the paired benchmark and its statistics, and the commands built on them."""
