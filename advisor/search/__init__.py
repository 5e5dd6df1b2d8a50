"""Search: which configurations there are, what each is likely to reach, and which of them comes next."""
