"""Programs that tests start, and no tests."""

collect_ignore = ["faulty.py", "line.py", "refused.py", "searched.py", "telling.py", "warm.py"]
