"""What Berth's decisions come to over days, on engines that know nothing of its models.

traffic    a trace as rates and lengths per minute, for as long as wanted
response   what one model copy does at a load: measured on the event-driven plant of the simulated engine, once
world      pools, prices and faults over time; who holds which GPUs
service    one deployment: groups that start, serve, are slow, fail; what users feel, what leaders would report
operator   production's decisions, carried out with the times they take
run        the clock; what came of it; lazy: what most looks need nothing of
baseline   the best fixed placement, and an oracle that knows the plants

Decisions come from `berth.core` as the operator makes them. Step times come from published measurements
(`berth.engine`), with an error per pool that nothing here tells the decisions about.
"""
