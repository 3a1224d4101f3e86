"""Programs that tests start, and no tests."""

collect_ignore = ["faulty.py", "line.py", "searched.py", "telling.py"]
