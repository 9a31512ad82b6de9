"""Scenario files, one per question worth asking; `fedtune list scenarios` names them."""
