"""A deployment that runs, looked at with its measurements: what is learned, how many groups, stay or move.

reading   the measurements decisions are made on          day     the busiest hour of the last 24
steer     one look: learn, diagnose, scale, decide        told    what status says of it

The operator and `berth simulate` call the same `steer`.
"""
