"""Daemon: jobs that wait in a queue, and slots that tune them, one a device. The only place of DBOS."""
