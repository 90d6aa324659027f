"""MoBiQuant Studio: the page on which a quantized model is run, watched and taught.

It talks to `mobiquant_core` only through the engine, trace records and stored evaluations.
"""
