"""Quality: what figures of an output mean, and why a trial may not be recommended."""
