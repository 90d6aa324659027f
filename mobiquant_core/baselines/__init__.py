"""Fixed-precision rivals of the elastic model: round to nearest, GPTQ, and the same calibration for one width."""
