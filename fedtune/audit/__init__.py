"""How much a run leaks, measured, against what it promises."""
