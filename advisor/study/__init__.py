"""Study: one tune, step by step, from the model's facts to the last block, and its trials one by one."""
