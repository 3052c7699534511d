"""Reading, writing, converting, loading and downloading of weights."""
