"""Whether a deployment should run somewhere else: the decision, made from measurements and prices.

decision   what can be decided, and in which words       rules   when a move is allowed and worth it
weigh      what staying and leaving cost, at worst too
"""
