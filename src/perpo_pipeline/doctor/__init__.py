"""What this machine can run, and the commands that install what is missing.

packages    `perpo doctor`: the packages that are installed, from metadata alone
model       `perpo doctor --model ID`: how a model would be sampled and trained
gpu         `perpo doctor --gpu`: the checks by name, their table and their JSON
running     one check in a process of its own, with a time limit
finding     what a check found
card, exactness, programs   the checks
"""
