"""Where a deployment runs: pool, variant, parallelism, batch limits and number of groups, chosen jointly and explained.

question  what the spec asks for            supply   what a pool has, now and in total
layouts   ways to run one copy              evaluate what is believed of each
size      how many groups, at which cost    choose   the search and its answer
"""
