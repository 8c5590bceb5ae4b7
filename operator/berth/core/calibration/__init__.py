"""What measurements teach about the models the planner believes in, and what is wrong when users feel it.

residuals   step time measured against predicted, at like load
shrink      how much of it holds for other pools and layouts
learn       what is remembered of it, and persisted
diagnose    slow group, slow pool, overload or longer prompts

Everything is a factor on the time of an engine step, as its logarithm: 0 is as predicted, 0.2 is 22 % slower.
"""
