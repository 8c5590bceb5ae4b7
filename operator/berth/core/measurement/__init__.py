"""What users feel, as numbers: pages of leaders become samples, samples tallies, tallies windows.

    Sample   one leader's counters and gauges at one moment, cumulative since its engine started
    Tally    what happened between two samples; adds up over time and over groups
    Batch    the tally of one minute
    Window   the last five minutes (fast) or the last hour (slow) of a group, a deployment or a pool
    Measured everything known of one deployment, and how fresh it is

Nothing here knows a clock or a network. Durations are seconds, moments Unix seconds, lengths tokens; None is unknown
and never 0.
"""
