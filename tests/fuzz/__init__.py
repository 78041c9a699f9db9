"""Odd inputs for every public function, by the thousand; CONTRIBUTING.md says how to run them.

`draw.py` has the odd values, `rooms/` the calls, `judge.py` what a call may do, `worker.py` the
process that makes them, `__main__.py` the command.
"""
